"""Timing: the points of the grid, and a row for each model and engine at each of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from hfcompress.benchmarking.config import REFERENCE, BenchConfig, runtime_of
from hfcompress.benchmarking.inputs import make_inputs
from hfcompress.benchmarking.subjects import Subject
from hfcompress.measure.latency import LatencyReport, measure_latency
from hfcompress.quantization.engine import Engine, with_static_shape
from hfcompress.utils import Progress, Row

_FEWEST = 5


@dataclass(frozen=True)
class Point:
    """One point of the grid; its subjects are timed together."""

    batch: int
    length: int
    threads: int


def points_of(config: BenchConfig, subjects: Sequence[Subject]) -> list[Point]:
    """Return the points of the grid, threads outermost; images have one length, 1."""
    images = subjects[0].spec.images
    lengths = (1,) if images else tuple(dict.fromkeys(config.length))
    threads = config.threads or (torch.get_num_threads(),)
    grid = itertools.product(dict.fromkeys(threads), dict.fromkeys(config.batch), lengths)
    return [Point(batch, length, count) for count, batch, length in grid]


def timed_rows(
    points: Sequence[Point],
    subjects: Sequence[Subject],
    config: BenchConfig,
    progress: Progress,
) -> Iterator[Row]:
    """Time all subjects in turns at each point, and yield the rows point by point."""
    for threads, group in itertools.groupby(points, key=lambda point: point.threads):
        with _torch_threads(threads):
            progress.stage(f"opening {len(subjects)} engines, {threads} threads")
            engines = {subject.label: subject.open(threads) for subject in subjects}
            for point in group:
                progress.stage(f"{point.batch} x {point.length}, {threads} threads")
                times = _measure(point, subjects, engines, config)
                yield from (_row(point, subject, subjects, times) for subject in subjects)


def _measure(
    point: Point,
    subjects: Sequence[Subject],
    engines: dict[str, Engine],
    config: BenchConfig,
) -> LatencyReport:
    calls = {}
    for subject in subjects:
        engine = engines[subject.label]
        inputs = make_inputs(subject.spec, point.batch, point.length)
        if config.fixed:
            engine = with_static_shape(engine, inputs)
        calls[subject.label] = partial(engine.logits, inputs)
    once = measure_latency(calls, warmup=config.warmup, repeats=1)
    round_seconds = sum(time.median for time in once.times.values()) / 1000
    affordable = int(config.seconds / max(2 * round_seconds, 1e-6))
    repeats = min(config.repeats, max(affordable, _FEWEST))
    return measure_latency(calls, warmup=0, repeats=repeats, settle=1)


def _row(point: Point, subject: Subject, subjects: Sequence[Subject], times: LatencyReport) -> Row:
    taken = times.times[subject.label]
    row: Row = {
        "model": subject.model,
        "engine": subject.engine,
        "runtime": runtime_of(subject.engine),
        "batch": point.batch,
        "length": None if subject.spec.images else point.length,
        "threads": point.threads,
        **taken.to_dict(),
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
