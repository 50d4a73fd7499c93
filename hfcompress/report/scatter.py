"""Accuracy against size: what students of other sizes keep of their teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfcompress.report.findings import point_of, smallest, within_noise
from hfcompress.report.plotting import (
    GREY,
    MARKERS,
    PALETTE,
    mark,
    name_lines,
    new_figure,
    png_bytes,
    tidy,
)
from hfcompress.report.rows import (
    Point,
    Row,
    compressed_points,
    dense_point,
    is_dense,
    is_percent,
    metric_of,
    metric_text,
    number,
    points_text,
)


@dataclass(frozen=True)
class SizedPoint:
    """One kind of student at one size, averaged over its seeds.

    ``parameters`` places it; ``value`` with ``low`` and ``high`` is its metric (fractions).
    """

    method: str
    parameters: float
    value: float
    low: float | None
    high: float | None
    values: tuple[float, ...]
    rows: tuple[Row, ...]


def teacher_parameters(rows: Sequence[Row]) -> float | None:
    """The size of the model that the students learn from; None where no step distilled."""
    for row in rows:
        for step in row.get("steps") or ():
            found = step.get("teacher_parameters") if isinstance(step, Mapping) else None
            if isinstance(found, (int, float)):
                return float(found)
    return None


def sized_points(rows: Sequence[Row]) -> list[SizedPoint]:
    """The students from small to large; rows without a size or a value are left out."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        size = number(row, "parameters")
        if size is not None and number(row, "value") is not None and not is_dense(row):
            groups.setdefault((str(row.get("method") or "student"), size), []).append(row)
    points = [_point(method, size, members) for (method, size), members in groups.items()]
    return sorted(points, key=lambda point: (point.parameters, point.method))


def _point(method: str, size: float, rows: list[Row]) -> SizedPoint:
    values = tuple(value for row in rows if (value := number(row, "value")) is not None)
    low, high = (_mean(rows, key) for key in ("low", "high"))
    return SizedPoint(method, size, fmean(values), low, high, values, tuple(rows))


def _mean(rows: list[Row], key: str) -> float | None:
    known = [value for row in rows if (value := number(row, key)) is not None]
    return fmean(known) if known else None


def draw_size(rows: Sequence[Row]) -> bytes:
    """The picture of `size_figure` as PNG."""
    return png_bytes(size_figure(rows))


def size_figure(rows: Sequence[Row]) -> Figure:
    """The metric against the number of parameters, one mark for each kind of student.

    Bars are 95 % intervals over examples, faint dots single seeds; the grey star is the teacher.

    Args:
        rows: any rows; those without a size or a value are left out.
    """
    metric, dense, points = metric_of(rows), dense_point(rows), sized_points(rows)
    scale = 100.0 if is_percent(metric) else 1.0
    figure = new_figure(9.5, 5.0)
    axes = figure.add_subplot()
    tidy(axes)
    for index, point in enumerate(points):
        x = point.parameters / 1e6
        mark(axes, x, point, scale, index)
        if len(point.values) > 1:
            seeds = [scale * value for value in point.values]
            colour = PALETTE[index % len(PALETTE)]
            axes.plot([x] * len(seeds), seeds, "o", color=colour, alpha=0.4, markersize=4)
    size = teacher_parameters(rows)
    if dense is not None:
        axes.axhline(scale * dense.value, color=GREY, linewidth=1.2, dashes=(6, 3))
        if size is not None:
            label = f"teacher, {metric_text(metric, dense.value)}"
            axes.plot([size / 1e6], [scale * dense.value], "*", color=GREY, markersize=14,
                      label=label, zorder=4)  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel("parameters (millions)")
    axes.set_ylabel(metric.replace("_", " ") + (" (%)" if scale == 100 else ""))
    name_lines(axes, bool(points))
    return figure


def size_sentence(rows: Sequence[Row]) -> str:
    """The smallest student whose loss against the teacher is within noise, in one sentence."""
    metric, dense, size = metric_of(rows), dense_point(rows), teacher_parameters(rows)
    points = sized_points(rows)
    if dense is None or size is None or not points:
        return "No student was measured beside its teacher."
    kept = [point for point in points if _within_noise(point, rows)]
    best = kept[0] if kept else max(points, key=lambda point: point.value)
    level = f"{metric} {metric_text(metric, best.value)} against {metric_text(metric, dense.value)}"
    share = f"{best.parameters / 1e6:.1f} M parameters, {100 * best.parameters / size:.0f} %"
    what = "Smallest student within noise of its teacher" if kept else "Best student"
    return f"{what}: {best.method} with {share} of the teacher's, {level}."


def _within_noise(point: SizedPoint, rows: Sequence[Row]) -> bool:
    dense = dense_point(rows)
    lines = compressed_points(point.rows)
    found = [item for line in lines.values() for item in line]
    return dense is not None and all(within_noise(item, dense) for item in found)


def sizes_figure(rows: Sequence[Row], title: str | None = None) -> Figure:
    """The metric against megabytes, one mark for each row.

    Bars are 95 % intervals over examples; the grey line is the dense model, the grey star its
    size where a row tells it; the yellow star is the smallest model within noise.

    Args:
        rows: any rows; those without a size or a value are left out.
        title: above the axes.
    """
    metric, dense, best = metric_of(rows), dense_point(rows), smallest(rows)
    scale = 100.0 if is_percent(metric) else 1.0
    figure = new_figure(9.5, 5.0)
    axes = figure.add_subplot()
    tidy(axes)
    drawn = 0
    for place, row in enumerate(rows):
        size, point = number(row, "bytes"), point_of(row)
        if size is None or point is None:
            continue
        mark(axes, size / 1e6, point, scale, drawn)
        if place == best:
            axes.plot([size / 1e6], [scale * point.value], "*", markersize=17, zorder=2,
                      markerfacecolor="#F0E442", markeredgecolor="black",
                      label="smallest within noise")  # fmt: skip
        drawn += 1
    if dense is not None:
        _draw_dense(axes, rows, dense, scale, metric)
    axes.set_xlim(left=0)
    axes.set_xlabel("size of the model's files (MB)")
    axes.set_ylabel(metric.replace("_", " ") + (" (%)" if scale == 100 else ""))
    if title:
        axes.set_title(title, loc="left", fontsize=12)
    name_lines(axes, bool(drawn))
    return figure


def _draw_dense(axes: Axes, rows: Sequence[Row], dense: Point, scale: float, metric: str) -> None:
    label = f"dense, {metric_text(metric, dense.value)}"
    axes.axhline(scale * dense.value, color=GREY, linewidth=1.2, dashes=(6, 3))
    size = _dense_megabytes(rows)
    if size is not None:
        axes.plot([size], [scale * dense.value], "*", color=GREY, markersize=14, label=label,
                  zorder=4)  # fmt: skip


def _dense_megabytes(rows: Sequence[Row]) -> float | None:
    """What the dense model's files take: its own row's bytes, or a row's times its ratio."""
    for row in sorted(rows, key=is_dense, reverse=True):
        size, ratio = number(row, "bytes"), number(row, "compression_ratio")
        if size is not None and (ratio is not None or is_dense(row)):
            return size * (ratio or 1.0) / 1e6
    return None


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
