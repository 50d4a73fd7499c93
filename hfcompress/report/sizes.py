"""The metric against the size of the files, for rows that differ by size alone."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfcompress.report.plotting import GREY, mark, name_lines, new_figure, tidy
from hfcompress.report.rows import (
    Point,
    Row,
    dense_point,
    is_dense,
    is_percent,
    metric_of,
    metric_text,
    number,
)
from hfcompress.report.smallest import point_of, smallest


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
