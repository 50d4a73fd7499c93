"""Accuracy against measured latency, and the Pareto front: what no other model beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfcompress.report.plotting import (
    GREY,
    MARKERS,
    PALETTE,
    name_lines,
    new_figure,
    png_bytes,
    tidy,
)
from hfcompress.report.rows import (
    Row,
    dense_point,
    is_percent,
    metric_of,
    metric_text,
    number,
    points_text,
)


@dataclass(frozen=True)
class TimedPoint:
    """One row whose latency was measured.

    Attributes:
        method: its line's name.
        milliseconds: of its model.
        speedup: times faster than the dense model, timed beside it.
        value: of the metric, with its 95 % interval.
        low, high: None where they are not known.
    """

    method: str
    milliseconds: float
    speedup: float
    value: float
    low: float | None
    high: float | None


def timed_points(rows: Sequence[Row]) -> list[TimedPoint]:
    """The rows with a value and a measured latency, the fastest first."""
    points = []
    for row in rows:
        latency, value = row.get("latency"), number(row, "value")
        if value is None or not isinstance(latency, Mapping):
            continue
        measured, dense = number(latency, "measured"), number(latency, "dense")
        if measured and dense:
            method = str(row.get("method") or "shrunk")
            low, high = number(row, "low"), number(row, "high")
            speedup = _by_round(row, measured) or dense / measured
            points.append(TimedPoint(method, measured, speedup, value, low, high))
    return sorted(points, key=lambda point: (point.milliseconds, -point.value))


def _by_round(row: Row, measured: float) -> float | None:
    """The ratio within a round that the tables show, where the time was taken by rounds."""
    for timing in row.get("timings") or ():
        if number(timing["measured"], "median") == measured:
            return number(timing["speedup"], "median")
    return None


def pareto_front(points: Sequence[TimedPoint]) -> list[TimedPoint]:
    """The points that are better than every faster one, the fastest first."""
    front: list[TimedPoint] = []
    for point in sorted(points, key=lambda point: (-point.speedup, -point.value)):
        if not front or point.value > front[-1].value:
            front.append(point)
    return front


def draw_front(rows: Sequence[Row]) -> bytes:
    """The picture of `front_figure` as PNG."""
    return png_bytes(front_figure(rows))


def front_figure(rows: Sequence[Row]) -> Figure:
    """The metric against speedup, one mark for each row; the Pareto front is the grey line.

    Speedups are ratios of times measured side by side, so that they compare between rows.

    Args:
        rows: any rows; those without a measured latency are left out.
    """
    metric, dense, points = metric_of(rows), dense_point(rows), timed_points(rows)
    scale = 100.0 if is_percent(metric) else 1.0
    figure = new_figure(9.5, 5.0)
    axes = figure.add_subplot()
    tidy(axes)
    for index, method in enumerate(dict.fromkeys(point.method for point in points)):
        _draw(axes, method, [p for p in points if p.method == method], scale, index)
    front = pareto_front(points)
    axes.plot(
        [point.speedup for point in front],
        [scale * point.value for point in front],
        color=GREY,
        linewidth=1.4,
        label="Pareto front" if front else None,
    )
    if dense is not None:
        label = f"dense, {metric_text(metric, dense.value)}"
        axes.axhline(scale * dense.value, color=GREY, linewidth=1.2, dashes=(6, 3), label=label)
    axes.set_xlabel("times faster than the dense model, measured")
    axes.set_ylabel(metric.replace("_", " ") + (" (%)" if scale == 100 else ""))
    name_lines(axes, bool(points))
    return figure


def _draw(axes: Axes, method: str, points: Sequence[TimedPoint], scale: float, index: int) -> None:
    low = [scale * max(p.value - (p.value if p.low is None else p.low), 0) for p in points]
    high = [scale * max((p.value if p.high is None else p.high) - p.value, 0) for p in points]
    axes.errorbar(
        [point.speedup for point in points],
        [scale * point.value for point in points],
        yerr=[low, high],
        color=PALETTE[index % len(PALETTE)],
        marker=MARKERS[index % len(MARKERS)],
        linestyle="none",
        markersize=7,
        elinewidth=1.0,
        capsize=3,
        label=method,
        zorder=3,
    )


def front_sentence(rows: Sequence[Row]) -> str:
    """The fastest model of the front and what it costs, in one sentence."""
    metric, dense, front = metric_of(rows), dense_point(rows), pareto_front(timed_points(rows))
    if not front or dense is None:
        return "No latency was measured beside the dense model."
    kept = [point for point in front if dense.low is None or point.value >= dense.low]
    best = kept[0] if kept else front[0]
    what = "Fastest within the dense model's interval" if kept else "Fastest"
    drop = points_text(metric, best.value - dense.value)
    return (
        f"{what}: {best.method}, {best.speedup:.1f} times faster ({best.milliseconds:.3g} ms), "
        f"{metric} {metric_text(metric, best.value)} ({drop})."
    )
