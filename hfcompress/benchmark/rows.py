"""What is kept of a bench: which rows belong together, which points are done, the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hfcompress.benchmarking.config import BenchConfig
from hfcompress.benchmarking.subjects import Subject
from hfcompress.benchmarking.timing import Point, Row
from hfcompress.errors import OutputError
from hfcompress.sweep.results import RunDirectory


def setup_of(subjects: Sequence[Subject], config: BenchConfig, around: Mapping[str, Any]) -> str:
    """A hash of all that rows must share to stand in one table."""
    parts = {
        "subjects": [[item.label, item.fingerprint, item.bytes] for item in subjects],
        "timing": [config.repeats, config.warmup, config.seconds, *["fixed"] * config.fixed],
        "processor": [around["cpu"], around["cores"], around["packages"]],
    }
    return _digest(parts)


def key_of(setup: str, row: Row) -> str:
    """A hash of a row's point."""
    return _digest([setup, *(row[name] for name in ("batch", "length", "threads"))])


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def own_rows(directory: RunDirectory, setup: str) -> list[Row]:
    """The rows that a folder holds already.

    Raises:
        OutputError: some are of another setup.
    """
    rows = directory.rows()
    if any(row.get("setup") != setup for row in rows):
        raise OutputError(
            f"{directory.path} holds a bench of other models, engines, rounds or another machine; "
            f"choose another --output or remove it"
        )
    return rows


def _place(row: Row) -> tuple[Any, ...]:
    return row["threads"], row["batch"], row["length"] or 1, row["model"], row["engine"]


def is_finished(point: Point, subjects: Sequence[Subject], rows: Sequence[Row]) -> bool:
    """Whether every subject has its row at a point."""
    have = {_place(row) for row in rows}
    return all(
        (point.threads, point.batch, point.length, item.model, item.engine) in have
        for item in subjects
    )


def chosen(rows: Sequence[Row], points: Sequence[Point], subjects: Sequence[Subject]) -> list[Row]:
    """The rows of this grid in its order; the latest where a point was cut and timed again."""
    by_place = {_place(row): row for row in rows}
    return [
        by_place[point.threads, point.batch, point.length, item.model, item.engine]
        for point in points
        for item in subjects
    ]
