"""``bench``: models in engines, timed in turns over a grid of batch, length and threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcompress.benchmark.rows import chosen, is_finished, key_of, own_rows, setup_of
from hfcompress.benchmarking.config import BenchConfig
from hfcompress.benchmarking.memory import Memory, Shape, measure_memory
from hfcompress.benchmarking.subjects import Subject, find_subjects
from hfcompress.benchmarking.timing import Point, Row, points_of, timed_rows
from hfcompress.files import atomic_write
from hfcompress.measure.environment import cpu_abilities, environment
from hfcompress.quantization.abilities import slow_int8
from hfcompress.recipe.progress import Progress
from hfcompress.report.bench import draw_bench
from hfcompress.report.table import csv_text
from hfcompress.sweep.results import RunDirectory


@dataclass(frozen=True)
class BenchResult:
    """What `bench` gives.

    Attributes:
        rows: one for each model, engine and point of the grid; times in milliseconds, memory and
            sizes in bytes. ``speedup`` is over the first model in torch fp32, ``same_runtime``
            over the first model in fp32 in the row's own runtime, both round by round.
        environment: processor, its abilities, versions.
        notes: what was left out and why, one sentence each.
    """

    rows: list[Row]
    environment: dict[str, Any]
    notes: tuple[str, ...]


def bench(
    models: Sequence[str] | str,
    config: BenchConfig | None = None,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Time models in every engine that is installed::

        result = bench(["distilbert-base-uncased", "small"], BenchConfig(batch=(1, 32)))

    At each point of the grid all are timed in turns, round by round, so that a busy moment hits
    all of them; ratios are taken within a round. Quantized forms are made once and kept in the
    cache; OpenVINO's int8 is calibrated with random inputs, which does for speed.

    Args:
        models: hub names, folders of checkpoints or of quantized models. Ratios are over the
            first.
        config: the grid and the engines.
        output: a folder that keeps rows as they come, a plot, CSV and JSON; the same call goes
            on where it stopped. None keeps nothing.
        progress: is told what is done.

    Raises:
        ConfigError: no model, a text longer than a model takes, texts and images together.
        SourceError, ModelError: a model that cannot be loaded.
        MissingExtraError: no engine is left, since packages are missing.
        OutputError: the folder cannot be written, or holds another bench.
    """
    config, progress = config or BenchConfig(), progress or Progress()
    directory = None if output is None else RunDirectory(Path(output))
    names = [models] if isinstance(models, str) else list(models)
    notes: list[str] = []
    slow = slow_int8()

    def tell(note: str) -> None:
        notes.append(note)
        progress.note(note)

    if slow:
        tell(slow)
    subjects = find_subjects(names, config, tell, progress.stage)
    around = bench_environment()
    setup = setup_of(subjects, config, around)
    known = [] if directory is None else own_rows(directory, setup)
    points = points_of(config, subjects)
    todo = [point for point in points if not is_finished(point, subjects, known)]
    memory = _memory(todo, subjects, config, progress, tell)
    rows = list(known)
    progress.sweep(len(points) - len(todo), len(points))
    for row in timed_rows(todo, subjects, config, progress):
        found = memory.get((row["model"], row["engine"]))
        if found is not None:
            shape = (row["batch"], row["length"] or 1)
            row.update(peak_rss=found.peaks[shape], rss_before=found.before)
        row.update(hash=key_of(setup, row), setup=setup)
        rows.append(row)
        if directory is not None:
            directory.append(row)
    result = BenchResult(chosen(rows, points, subjects), around, tuple(notes))
    if directory is not None:
        _write(directory, result, names, config)
    return result


def bench_environment() -> dict[str, Any]:
    """The environment, with the processor's abilities by name."""
    abilities = [name for name, has in cpu_abilities().items() if has is True]
    return {**environment(), "abilities": abilities}


def _memory(
    points: Sequence[Point],
    subjects: Sequence[Subject],
    config: BenchConfig,
    progress: Progress,
    tell: Callable[[str], None],
) -> dict[tuple[str, str], Memory]:
    found: dict[tuple[str, str], Memory] = {}
    if not config.memory or not points:
        return found
    shapes: list[Shape] = [(point.batch, point.length) for point in points]
    for number, subject in enumerate(subjects):
        progress.stage(f"memory of {subject.label}")
        progress.work(number, len(subjects))
        measured = measure_memory(subject, shapes, max(point.threads for point in points))
        if isinstance(measured, str):
            tell(measured)
        else:
            found[subject.model, subject.engine] = measured
    return found


def _write(
    directory: RunDirectory, result: BenchResult, models: list[str], config: BenchConfig
) -> None:
    directory.write_json(
        "bench.json",
        {
            "models": models,
            "config": config.plain(),
            "environment": result.environment,
            "notes": list(result.notes),
            "rows": result.rows,
        },
    )
    directory.write_text("bench.csv", csv_text(result.rows))
    atomic_write(directory.path / "bench.png", draw_bench(result.rows))
