"""Accuracy against size: what students of other sizes keep of their teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.figure import Figure

from hfcompress.report.findings import within_noise
from hfcompress.report.plotting import GREY, PALETTE, mark, name_lines, new_figure, png_bytes, tidy
from hfcompress.report.rows import (
    Row,
    compressed_points,
    dense_point,
    is_dense,
    is_percent,
    metric_of,
    metric_text,
    number,
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
