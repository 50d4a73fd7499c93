"""``bench``: models in engines, timed in turns over a grid of batch, length and threads."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hfcompress.benchmark.config import BenchConfig
from hfcompress.benchmark.inputs import make_inputs
from hfcompress.benchmark.kinds import REFERENCE, runtime_of
from hfcompress.benchmark.memory import Memory, Shape, measure_memory
from hfcompress.benchmark.subjects import Subject, find_subjects
from hfcompress.errors import OutputError
from hfcompress.files import atomic_write
from hfcompress.measure.environment import cpu_abilities, environment
from hfcompress.measure.latency import LatencyReport, measure_latency
from hfcompress.quantization.abilities import slow_int8
from hfcompress.quantization.engine import Engine
from hfcompress.recipe.progress import Progress
from hfcompress.recipe.store import RunDirectory
from hfcompress.report.bench_plot import draw_bench
from hfcompress.report.table import csv_text

Row = dict[str, Any]
_FEWEST = 5


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


@dataclass(frozen=True)
class _Point:
    """One point of the grid; its subjects are timed together."""

    batch: int
    length: int
    threads: int


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
    setup = _setup(subjects, config, around)
    known = [] if directory is None else _own_rows(directory, setup)
    points = _points(config, subjects)
    todo = [point for point in points if not _finished(point, subjects, known)]
    memory = _memory(todo, subjects, config, progress, tell)
    rows = list(known)
    progress.sweep(len(points) - len(todo), len(points))
    for row in _timed(todo, subjects, config, progress):
        found = memory.get((row["model"], row["engine"]))
        if found is not None:
            shape = (row["batch"], row["length"] or 1)
            row.update(peak_rss=found.peaks[shape], rss_before=found.before)
        row.update(hash=_key(setup, row), setup=setup)
        rows.append(row)
        if directory is not None:
            directory.append(row)
    result = BenchResult(_chosen(rows, points, subjects), around, tuple(notes))
    if directory is not None:
        _write(directory, result, names, config)
    return result


def bench_environment() -> dict[str, Any]:
    """The environment, with the processor's abilities by name."""
    abilities = [name for name, has in cpu_abilities().items() if has is True]
    return {**environment(), "abilities": abilities}


# --- timing ------------------------------------------------------------------------------------


def _points(config: BenchConfig, subjects: Sequence[Subject]) -> list[_Point]:
    images = subjects[0].spec.images
    lengths = (1,) if images else tuple(dict.fromkeys(config.length))
    threads = config.threads or (torch.get_num_threads(),)
    grid = itertools.product(dict.fromkeys(threads), dict.fromkeys(config.batch), lengths)
    return [_Point(batch, length, count) for count, batch, length in grid]


def _timed(
    points: Sequence[_Point],
    subjects: Sequence[Subject],
    config: BenchConfig,
    progress: Progress,
) -> Iterator[Row]:
    for threads, group in itertools.groupby(points, key=lambda point: point.threads):
        with _torch_threads(threads):
            progress.stage(f"opening {len(subjects)} engines, {threads} threads")
            engines = {subject.label: subject.open(threads) for subject in subjects}
            for point in group:
                progress.stage(f"{point.batch} x {point.length}, {threads} threads")
                times = _measure(point, subjects, engines, config)
                yield from (_row(point, subject, subjects, times) for subject in subjects)


def _measure(
    point: _Point,
    subjects: Sequence[Subject],
    engines: dict[str, Engine],
    config: BenchConfig,
) -> LatencyReport:
    calls = {
        subject.label: partial(
            engines[subject.label].logits, make_inputs(subject.spec, point.batch, point.length)
        )
        for subject in subjects
    }
    once = measure_latency(calls, warmup=config.warmup, repeats=1)
    round_seconds = sum(time.median for time in once.times.values()) / 1000
    affordable = int(config.seconds / max(round_seconds, 1e-6))
    repeats = min(config.repeats, max(affordable, _FEWEST))
    return measure_latency(calls, warmup=0, repeats=repeats)


def _row(point: _Point, subject: Subject, subjects: Sequence[Subject], times: LatencyReport) -> Row:
    taken = times.times[subject.label]
    row: Row = {
        "model": subject.model,
        "engine": subject.engine,
        "runtime": runtime_of(subject.engine),
        "batch": point.batch,
        "length": None if subject.spec.images else point.length,
        "threads": point.threads,
        **taken.plain(),
        "examples_per_second": 1000 * point.batch / taken.median,
        "bytes": subject.bytes,
    }
    first = subjects[0].model
    own = f"{row['runtime']}-fp32"
    for key, engine in (("speedup", REFERENCE), ("same_runtime", own)):
        reference = f"{first} · {engine}"
        if reference in times.times:
            ratio = times.ratio(reference, subject.label)
            row[key] = {"median": ratio.median, "low": ratio.low, "high": ratio.high}
    return row


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _memory(
    points: Sequence[_Point],
    subjects: Sequence[Subject],
    config: BenchConfig,
    progress: Progress,
    tell: Any,
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


# --- what is kept ------------------------------------------------------------------------------


def _setup(subjects: Sequence[Subject], config: BenchConfig, around: dict[str, Any]) -> str:
    """A hash of all that rows must share to stand in one table."""
    parts = {
        "subjects": [[item.label, item.fingerprint, item.bytes] for item in subjects],
        "timing": [config.repeats, config.warmup, config.seconds],
        "processor": [around["cpu"], around["cores"], around["packages"]],
    }
    return _digest(parts)


def _key(setup: str, row: Row) -> str:
    return _digest([setup, *(row[name] for name in ("batch", "length", "threads"))])


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _own_rows(directory: RunDirectory, setup: str) -> list[Row]:
    rows = directory.rows()
    if any(row.get("setup") != setup for row in rows):
        raise OutputError(
            f"{directory.path} holds a bench of other models, engines, rounds or another machine; "
            f"choose another --output or remove it"
        )
    return rows


def _place(row: Row) -> tuple[Any, ...]:
    return row["threads"], row["batch"], row["length"] or 1, row["model"], row["engine"]


def _finished(point: _Point, subjects: Sequence[Subject], rows: Sequence[Row]) -> bool:
    have = {_place(row) for row in rows}
    return all(
        (point.threads, point.batch, point.length, item.model, item.engine) in have
        for item in subjects
    )


def _chosen(
    rows: Sequence[Row], points: Sequence[_Point], subjects: Sequence[Subject]
) -> list[Row]:
    """The rows of this grid in its order; the latest where a point was cut and timed again."""
    by_place = {_place(row): row for row in rows}
    return [
        by_place[point.threads, point.batch, point.length, item.model, item.engine]
        for point in points
        for item in subjects
    ]


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
