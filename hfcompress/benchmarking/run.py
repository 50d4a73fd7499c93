"""``bench``: models in engines, timed in turns over a grid of batch, length and threads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hfcompress.benchmarking.config import BenchConfig
from hfcompress.benchmarking.memory import Memory, Shape, measure_memory
from hfcompress.benchmarking.subjects import Subject, find_subjects
from hfcompress.benchmarking.timing import Point, points_of, timed_rows
from hfcompress.errors import ConfigError, OutputError
from hfcompress.measure.environment import cpu_abilities, environment, slow_int8
from hfcompress.report.bench import draw_bench
from hfcompress.report.csv_table import csv_text
from hfcompress.sweep.results import RunDirectory
from hfcompress.utils import Progress, Row, atomic_write


@dataclass(frozen=True)
class BenchResult:
    """The result of `bench`.

    Attributes:
        rows: one for each model, engine and point of the grid; times in milliseconds, memory and
            sizes in bytes. ``speedup`` is over the first model in torch fp32, ``same_runtime``
            over the first model in fp32 in the row's own runtime, both round by round.
        environment: processor, its abilities, versions.
        notes: the engines that were left out and why, one sentence each.
    """

    rows: list[Row]
    environment: Row
    notes: tuple[str, ...]


def bench(
    models: Sequence[str] | str,
    config: BenchConfig | None = None,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Time models in every engine that is installed::

        result = bench(["distilbert-base-uncased", "small"], BenchConfig(batch=(1, 32)))

    At each point of the grid all engines are timed in turns, round by round, so that load on the
    machine affects all of them; ratios are computed within a round. Quantized forms are cached;
    OpenVINO's int8 is calibrated with random inputs, which is enough to measure speed.

    Args:
        models: hub names, folders of checkpoints or of quantized models. Ratios are over the
            first.
        config: the grid and the engines.
        output: a folder for rows, a plot, CSV and JSON; the same call resumes an interrupted
            bench. None writes nothing.
        progress: receives stages, counts and notes.

    Raises:
        ConfigError: no model, a text longer than a model takes, texts and images together.
        SourceError, ModelError: a model that cannot be loaded.
        MissingExtraError: no engine is left, since packages are missing.
        OutputError: the folder cannot be written, or contains another bench.
    """
    config, progress = config or BenchConfig(), progress or Progress()
    directory = None if output is None else RunDirectory(Path(output))
    names = [models] if isinstance(models, str) else list(_checked(models))
    notes: list[str] = []
    slow = slow_int8()

    def log(note: str) -> None:
        notes.append(note)
        progress.note(note)

    if slow:
        log(slow)
    subjects = find_subjects(names, config, log, progress.stage)
    around = bench_environment()
    setup = setup_of(subjects, config, around)
    known = [] if directory is None else own_rows(directory, setup)
    points = points_of(config, subjects)
    todo = [point for point in points if not is_finished(point, subjects, known)]
    memory = _memory(todo, subjects, config, progress, log)
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


def _checked(models: object) -> Sequence[str]:
    """The names of models.

    Raises:
        ConfigError: modules in the place of names.
    """
    given = [models] if isinstance(models, nn.Module) else models
    found = list(given) if isinstance(given, Sequence) else [given]
    wrong = next((item for item in found if not isinstance(item, (str, Path))), None)
    if wrong is not None:
        raise ConfigError(
            f"bench times saved models, by folder or hub name, not a {type(wrong).__name__}; "
            f"measure_latency times modules"
        )
    return [str(item) for item in found]


def bench_environment() -> Row:
    """Return the environment, with the processor's abilities by name."""
    abilities = [name for name, has in cpu_abilities().items() if has is True]
    return {**environment(), "abilities": abilities}


def _memory(
    points: Sequence[Point],
    subjects: Sequence[Subject],
    config: BenchConfig,
    progress: Progress,
    log: Callable[[str], None],
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
            log(measured)
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
            "config": config.to_dict(),
            "environment": result.environment,
            "notes": list(result.notes),
            "rows": result.rows,
        },
    )
    directory.write_text("bench.csv", csv_text(result.rows))
    atomic_write(directory.path / "bench.png", draw_bench(result.rows))


def setup_of(subjects: Sequence[Subject], config: BenchConfig, around: Row) -> str:
    """Return a hash of everything that rows of one table share."""
    parts = {
        "subjects": [[item.label, item.fingerprint, item.bytes] for item in subjects],
        "timing": [config.repeats, config.warmup, config.seconds, *["fixed"] * config.fixed],
        "processor": [around["cpu"], around["cores"], around["packages"]],
    }
    return _digest(parts)


def key_of(setup: str, row: Row) -> str:
    """Return a hash of a row's point."""
    return _digest([setup, *(row[name] for name in ("batch", "length", "threads"))])


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def own_rows(directory: RunDirectory, setup: str) -> list[Row]:
    """Return the rows that a folder already contains.

    Raises:
        OutputError: some are of another setup.
    """
    rows = directory.rows()
    if any(row.get("setup") != setup for row in rows):
        raise OutputError(
            f"{directory.path} contains a bench of other models, engines, rounds or machines; "
            f"choose another --output or remove it"
        )
    return rows


def _place(row: Row) -> tuple[object, ...]:
    return row["threads"], row["batch"], row["length"] or 1, row["model"], row["engine"]


def is_finished(point: Point, subjects: Sequence[Subject], rows: Sequence[Row]) -> bool:
    """Return whether every subject has a row at a point."""
    have = {_place(row) for row in rows}
    return all(
        (point.threads, point.batch, point.length, item.model, item.engine) in have
        for item in subjects
    )


def chosen(rows: Sequence[Row], points: Sequence[Point], subjects: Sequence[Subject]) -> list[Row]:
    """Return the rows of this grid in order; the latest if a point was timed twice."""
    by_place = {_place(row): row for row in rows}
    return [
        by_place[point.threads, point.batch, point.length, item.model, item.engine]
        for point in points
        for item in subjects
    ]
