"""Which rows a table or a plot shows where there are more than anybody reads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import fmean

from hfcompress.report.findings import is_about_size, smallest, sweet_spot
from hfcompress.report.rows import Row, is_dense, method_of, metric_of, number

MOST_ROWS = 1000
"""Rows of a table on the page."""
MOST_LINES = 40
"""Lines, or single points, that a plot names in its legend."""


def leading_places(rows: Sequence[Row], most: int | None, first: Collection[int] = ()) -> list[int]:
    """Indices, in order, of the rows to show: those given, then those with the highest metric.

    Args:
        rows: any rows.
        most: how many; None for all.
        first: indices of rows that are shown in any case.
    """
    if most is None or len(rows) <= most:
        return list(range(len(rows)))
    values = [number(row, "value") for row in rows]
    known = [float("-inf") if value is None else value for value in values]
    return sorted(sorted(range(len(rows)), key=lambda i: (i not in first, -known[i], i))[:most])


def leading_sentence(shown: int, rows: Sequence[Row]) -> str:
    """How many of the rows are shown, and which; empty where all are."""
    if shown >= len(rows):
        return ""
    metric = metric_of(rows).replace("_", " ")
    return (
        f"{shown:,} of {len(rows):,} rows are shown, those with the highest {metric}; "
        f"results.csv has all"
    )


def drawn_rows(rows: Sequence[Row], most: int = MOST_LINES) -> list[Row]:
    """The rows to draw: all of the methods with the highest mean metric and of the sweet spot's,
    and the dense ones; where each row is a point with a name, the rows with the highest metric.
    """
    if is_about_size(rows):
        place = smallest(rows)
        return [rows[i] for i in leading_places(rows, most, () if place is None else (place,))]
    values: dict[str, list[float]] = {}
    for row in rows:
        if not is_dense(row) and (value := number(row, "value")) is not None:
            values.setdefault(method_of(row), []).append(value)
    if len(values) <= most:
        return list(rows)
    best = sweet_spot(rows)
    first = None if best is None else best.method
    order = sorted(values, key=lambda name: (name != first, -fmean(values[name])))
    kept = set(order[:most])
    return [row for row in rows if is_dense(row) or method_of(row) in kept]
