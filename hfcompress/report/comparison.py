"""Compared rows as a table and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from hfcompress.report.points import milliseconds_of
from hfcompress.report.rows import (
    Row,
    count_text,
    interval_text,
    is_percent,
    metric_of,
    metric_text,
    number,
    points_text,
    share_text,
)
from hfcompress.report.several import run_of
from hfcompress.report.table import ResultTable, TerminalTable, make_column

_MOST_NAMED = 3


def comparison_table(rows: Sequence[Row]) -> TerminalTable:
    """The table of compared rows for ``rich.console.Console.print``.

    Args:
        rows: the best first, as `RunComparison.rows`.
    """
    metric, column = metric_of(rows), partial(make_column, rows, always=True)
    several = len(rows) > 2
    columns = (
        column("row", row_name, text=True),
        column("model", model_text, text=True, spare=1),
        column(metric, lambda row: metric_text(metric, number(row, "value"))),
        column("95 % interval", lambda row: interval_text(metric, row), spare=3),
        column("below the best", lambda row: points_text(metric, _of(row, "value")).lstrip("+")),
        column("95 % of that", lambda row: difference_interval(metric, row), spare=2),
        column("p of all" if several else "p", _p_text),
        column("by", lambda row: str(_comparison(row).get("test") or ""), text=True, spare=4),
        column("verdict", lambda row: str(row.get("verdict") or ""), text=True),
        column("size", _size_text, spare=5),
        column("ms", _milliseconds_text, spare=6),
        column("sparsity", lambda row: share_text(row, "actual_sparsity"), spare=7),
        column("parameters", lambda row: count_text(row, "parameters"), spare=8),
    )
    shown = tuple(one for one in columns if set(one.cells) - {""})
    return TerminalTable(ResultTable(shown, "", frozenset([0]), tuple(rows)), None)


def comparison_sentence(rows: Sequence[Row]) -> str:
    """The result in one sentence: which row is best, and how sure that is.

    Args:
        rows: the best first, as `RunComparison.rows`.
    """
    best, *others = rows
    if len(others) == 1:
        return _of_two(best, others[0])
    metric = metric_of(rows)
    level = f"{metric.replace('_', ' ')} {metric_text(metric, number(best, 'value'))}"
    groups = {
        "as good within noise": [row for row in others if row["verdict"] == "as good within noise"],
        "worse": [row for row in others if row["verdict"] == "worse"],
        "not known to be worse, without intervals": [
            row for row in others if row["verdict"] == "unknown"
        ],
    }
    parts = [
        f"{len(found)} {'is' if len(found) == 1 else 'are'} {what} ({_names(found)})"
        for what, found in groups.items()
        if found
    ]
    return (
        f"{named(best)} has the best of {len(rows)} values, {level}; of the others "
        f"{', '.join(parts)}."
    )


def _of_two(best: Row, other: Row) -> str:
    metric, found = metric_of([best, other]), _comparison(other)
    values = [metric_text(metric, number(row, "value")) for row in (best, other)]
    points = " points" if is_percent(metric) else ""
    apart = points_text(metric, _of(other, "value")).lstrip("+")
    level = f"{metric.replace('_', ' ')} {values[0]} against {values[1]}"
    if found.get("p") is None:
        return (
            f"{named(best)} has the better value than {named(other)}, {level}; how sure that is "
            f"cannot be said, because not both have an interval."
        )
    interval = f"{apart}{points}, 95 % interval {difference_interval(metric, other)}"
    test = f"{found['test']} p {_p_with_sign(found)}"
    where = (
        "by the intervals, because they did not answer the same rows or kept no answers"
        if found.get("n") is None
        else f"on the same {found['n']:,} rows"
    )
    if other["verdict"] == "worse":
        what = f"{named(best)} is better than {named(other)}"
    else:
        what = f"Which of {named(best)} and {named(other)} is better is not known"
    return f"{what}: {level} ({interval}; {test}, {where})."


def _names(rows: Sequence[Row]) -> str:
    names = [row_name(row) for row in rows[:_MOST_NAMED]]
    return ", ".join(names) + ", ..." * (len(rows) > _MOST_NAMED)


def named(row: Row) -> str:
    """A row's name, and what its model is."""
    return f"{row_name(row)} ({model_text(row)})"


def row_name(row: Row) -> str:
    """The run of a row and its index there, as ``compare`` takes it."""
    return f"{run_of(row)}:{row.get('index', 0)}"


def model_text(row: Row) -> str:
    """The method and settings of a row."""
    settings = row.get("settings") or {}
    method = str(row.get("method") or "").partition(", ")[0]  # what follows are settings, too
    parts = [method, *(f"{key}={value}" for key, value in settings.items())]
    return ", ".join(part for part in parts if part)


def difference_interval(metric: str, row: Row) -> str:
    """The 95 % interval of what a row lacks against the best one; empty where it is not known."""
    low, high = _of(row, "low"), _of(row, "high")
    if low is None or high is None:
        return ""
    return " to ".join(points_text(metric, value).lstrip("+") for value in (low, high))


def _comparison(row: Row) -> Row:
    found = row.get("comparison")
    return found if isinstance(found, Mapping) else {}


def _of(row: Row, key: str) -> float | None:
    return number(_comparison(row), key)


def _p_text(row: Row) -> str:
    value = _of(row, "p")
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _p_with_sign(found: Row) -> str:
    value = found["p"]
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _size_text(row: Row) -> str:
    value = number(row, "bytes")
    return "" if value is None else f"{value / 1e6:,.2f} MB"


def _milliseconds_text(row: Row) -> str:
    value = milliseconds_of(row)
    return "" if value is None else f"{value:.3g}"
