"""The curve of a sweep: the metric against sparsity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import offset_copy

from hfcompress.report.findings import is_about_size, sweet_spot
from hfcompress.report.plotting import DASHES, GREY, MARKERS, PALETTE, new_figure, png_bytes, tidy
from hfcompress.report.rows import (
    Point,
    Row,
    compressed_points,
    dense_point,
    is_percent,
    metric_of,
    metric_text,
)
from hfcompress.report.scatter import sizes_figure


def draw_curve(rows: Sequence[Row], title: str | None = None) -> bytes:
    """The picture of `curve_figure` as PNG."""
    return png_bytes(curve_figure(rows, title))


def curve_figure(rows: Sequence[Row], title: str | None = None) -> Figure:
    """The metric against actual sparsity: one line per method, averaged over seeds.

    Where no row asked for a sparsity but sizes are known it is `sizes_figure`.

    Bars are 95 % intervals over examples, faint dots single seeds; the grey band is the dense
    model's interval, the star the sweet spot, hollow diamonds published values.

    Args:
        rows: any rows; those without a value are left out, none at all draws empty axes.
        title: above the axes.
    """
    if is_about_size(rows):
        return sizes_figure(rows, title)
    metric, dense, lines = metric_of(rows), dense_point(rows), compressed_points(rows)
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    tidy(axes)
    scale = 100.0 if is_percent(metric) else 1.0
    shifts = _shifts(list(lines))
    if dense is not None:
        _draw_dense(axes, dense, scale, metric)
    for index, (method, line) in enumerate(lines.items()):
        _draw_line(axes, method, line, dense, scale, index, shifts[method])
    _draw_published(axes, [dense, *(point for line in lines.values() for point in line)], scale)
    best = sweet_spot(rows)
    if best is not None:
        _draw_sweet_spot(figure, axes, best, scale, shifts[best.method])
    _label(axes, metric, scale, title)
    _legend(figure, axes)
    return figure


def _shifts(methods: list[str]) -> dict[str, float]:
    # Methods stand a little beside each other, or their bars would hide one another.
    return {name: 0.4 * (i - (len(methods) - 1) / 2) for i, name in enumerate(methods)}


def _label(axes: Axes, metric: str, scale: float, title: str | None) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("actual sparsity of the pruned weights (%)")
    axes.set_ylabel(metric.replace("_", " ") + (" (%)" if scale == 100 else ""))
    if title:
        axes.set_title(title, loc="left", fontsize=12)


def _draw_dense(axes: Axes, dense: Point, scale: float, metric: str) -> None:
    label = f"dense, {metric_text(metric, dense.value)}"
    if dense.low is not None and dense.high is not None:
        axes.axhspan(dense.low * scale, dense.high * scale, color=GREY, alpha=0.14, linewidth=0)
        label += " (band: 95 % interval)"
    axes.axhline(dense.value * scale, color=GREY, linewidth=1.4, dashes=(6, 3), label=label)


def _draw_line(
    axes: Axes,
    method: str,
    line: list[Point],
    dense: Point | None,
    scale: float,
    index: int,
    shift: float,
) -> None:
    x = [100 * point.sparsity + shift for point in line]
    y = [scale * point.value for point in line]
    low = [scale * (point.value - point.low) if point.low is not None else 0.0 for point in line]
    high = [scale * (point.high - point.value) if point.high is not None else 0.0 for point in line]
    colour = PALETTE[index % len(PALETTE)]
    axes.errorbar(
        x,
        y,
        yerr=np.clip([low, high], 0, None),
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        linestyle=DASHES[(index // len(PALETTE)) % len(DASHES)],
        markersize=6,
        linewidth=1.8,
        elinewidth=1.1,
        capsize=3,
        label=method,
        zorder=3,
    )
    if dense is not None:  # every line starts at the dense model
        start = ([0.0, x[0]], [scale * dense.value, y[0]])
        axes.plot(*start, color=colour, linestyle=DASHES[(index // 7) % 4], linewidth=1.8)
    for place, point in zip(x, line, strict=True):
        if len(point.values) > 1:
            values = [scale * value for value in point.values]
            axes.plot([place] * len(values), values, ".", color=colour, alpha=0.45, markersize=5)


def _draw_published(axes: Axes, points: list[Point | None], scale: float) -> None:
    known = {(p.sparsity, p.reference) for p in points if p and p.reference is not None}
    if known:
        axes.plot(
            [100 * sparsity for sparsity, _ in sorted(known)],
            [scale * value for _, value in sorted(known)],
            linestyle="none",
            marker="D",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor="black",
            markeredgewidth=1.3,
            label="published",
            zorder=5,
        )


def _draw_sweet_spot(figure: Figure, axes: Axes, best: Point, scale: float, shift: float) -> None:
    x = 100 * best.sparsity + shift
    top = max(value for value in (best.value, best.high, best.reference) if value is not None)
    axes.axvline(x, color=GREY, linewidth=0.9, linestyle=":", zorder=1)
    axes.plot(
        [x],
        [scale * top],
        transform=offset_copy(axes.transData, figure, y=14, units="points"),
        linestyle="none",
        marker="*",
        markersize=16,
        markerfacecolor="#F0E442",
        markeredgecolor="black",
        markeredgewidth=1.0,
        label=f"sweet spot, {100 * best.sparsity:.0f} % with {best.method}",
        zorder=6,
    )
    bottom, ceiling = axes.get_ylim()
    axes.set_ylim(bottom, max(ceiling, scale * top + 0.08 * (ceiling - bottom)))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center")
        return
    # matplotlib lists lines with bars last; the marks belong below them.
    order = sorted(range(len(labels)), key=lambda i: labels[i].startswith(("published", "sweet")))
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    # Accuracy falls to the right, so the lower left is free; many lines need a place outside.
    if len(handles) <= 6:
        axes.legend(handles, labels, loc="lower left", fontsize=9.5, framealpha=0.9)
        return
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9.5)
    figure.set_figwidth(10.5)
