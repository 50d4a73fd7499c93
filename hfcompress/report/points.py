"""Rows as the points of the page's chart: the metric against sparsity, bytes, time and products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from hfcompress.report.plotting import colour_of, metric_label, metric_scale
from hfcompress.report.rows import (
    Row,
    is_dense,
    method_of,
    metric_of,
    metric_text,
    number,
)
from hfcompress.report.several import are_several, run_of


class ChartPoint(TypedDict):
    """One row: its values are in the chart's units; None where a row does not know one.

    ``row`` is the index of the row, ``x`` maps the key of an axis to a value.
    """

    row: int
    label: str
    group: str
    x: dict[str, float | None]
    value: float
    low: float | None
    high: float | None


class Axis(TypedDict):
    """A horizontal axis; ``better`` says which end is the better one."""

    key: str
    title: str
    better: str


class Chart(TypedDict):
    """What the page's script draws; a group is a line, with its colour. ``front`` says whether the
    Pareto front is drawn from the start."""

    metric: str
    front: bool
    axes: list[Axis]
    groups: dict[str, str]
    points: list[ChartPoint]


def milliseconds_of(row: Row) -> float | None:
    """The milliseconds that a row measured; None where it did not."""
    latency = row.get("latency")
    return number(latency, "measured") if isinstance(latency, Mapping) else None


def _sparsity(row: Row) -> float | None:
    actual = number(row, "actual_sparsity")
    return actual if actual is not None else number(row, "requested_sparsity")


_AXES: dict[str, tuple[str, str, float, Callable[[Row], float | None]]] = {
    "sparsity": ("sparsity of the pruned weights (%)", "high", 100.0, _sparsity),
    "bytes": ("size (MB)", "low", 1e-6, lambda row: number(row, "bytes")),
    "milliseconds": ("milliseconds, measured", "low", 1.0, milliseconds_of),
    "macs": ("multiply-accumulates (M)", "low", 1e-6, lambda row: number(row, "macs")),
}


def chart_of(rows: Sequence[Row]) -> Chart | None:
    """The chart of rows; None where fewer than two have a metric, or nothing to set it against.

    Args:
        rows: any rows; `ChartPoint.row` counts them from 0.
    """
    metric = metric_of(rows)
    scale = metric_scale(metric)
    points: list[ChartPoint] = []
    for place, row in enumerate(rows):
        value, low, high = (number(row, key) for key in ("value", "low", "high"))
        if value is None:
            continue
        points.append(
            ChartPoint(
                row=place,
                label=_label(row, metric),
                group="dense" if is_dense(row) else method_of(row),
                x={key: _scaled(read(row), unit) for key, (_, _, unit, read) in _AXES.items()},
                value=value * scale,
                low=_scaled(low, scale),
                high=_scaled(high, scale),
            )
        )
    axes = [
        Axis(key=key, title=title, better=better)
        for key, (title, better, _, _) in _AXES.items()
        if len({point["x"][key] for point in points} - {None}) > 1
    ]
    if not axes:
        return None
    names = list(dict.fromkeys(point["group"] for point in points if point["group"] != "dense"))
    groups = {"dense": "#80868B"} | {name: colour_of(i) for i, name in enumerate(names)}
    return Chart(
        metric=metric_label(metric), front=are_several(rows), axes=axes, groups=groups,
        points=points,
    )  # fmt: skip


def _label(row: Row, metric: str) -> str:
    settings = row.get("settings") or {}
    text = ", ".join(f"{name} {value}" for name, value in settings.items())
    where = f"{run_of(row)}: {text}" if text and run_of(row) else text
    return f"{metric_text(metric, number(row, 'value'))}: {where or method_of(row, 'dense')}"


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale
