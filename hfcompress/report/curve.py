"""The metric against sparsity, one line per method."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import offset_copy

from hfcompress.report.findings import is_about_size, sweet_spot
from hfcompress.report.plotting import (
    GREY,
    STAR_COLOUR,
    add_empty_note,
    add_title,
    colour_of,
    dash_of,
    draw_dense_line,
    draw_points,
    draw_seeds,
    metric_label,
    metric_scale,
    new_figure,
    png_bytes,
    style_axes,
)
from hfcompress.report.rows import (
    Point,
    Row,
    compressed_points,
    dense_points,
    metric_of,
    metric_text,
)
from hfcompress.report.scatter import file_size_figure


def draw_curve(rows: Sequence[Row], title: str | None = None) -> bytes:
    """`curve_figure` as PNG."""
    return png_bytes(curve_figure(rows, title))


def curve_figure(rows: Sequence[Row], title: str | None = None) -> Figure:
    """The metric against actual sparsity: one line per method, averaged over seeds.

    Bars are 95 % intervals over examples, faint dots single seeds; the grey band is the dense
    model's interval, the star the sweet spot, hollow diamonds published values. If the rows
    compare file sizes and request no sparsity, this is `file_size_figure`.

    Args:
        rows: any rows; those without a value are left out.
        title: above the axes.
    """
    if is_about_size(rows):
        return file_size_figure(rows, title)
    metric, denses, lines = metric_of(rows), dense_points(rows), compressed_points(rows)
    scale, shifts = metric_scale(metric), _shifts(list(lines))
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    style_axes(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("actual sparsity of the pruned weights (%)")
    axes.set_ylabel(metric_label(metric))
    for run, dense in denses.items():
        _draw_dense(axes, dense, metric, run)
    for index, (method, line) in enumerate(lines.items()):
        run = next((run for run in denses if method.startswith(f"{run}: ")), "")
        _draw_line(axes, line, denses.get(run), scale, index, shifts[method])
    _draw_published(
        axes, [*denses.values(), *(point for line in lines.values() for point in line)], scale
    )
    best = sweet_spot(rows)
    if best is not None:
        _draw_sweet_spot(figure, axes, best, scale, shifts[best.method])
    add_title(axes, title)
    _add_ordered_legend(figure, axes)
    return figure


def _shifts(methods: list[str]) -> dict[str, float]:
    """Horizontal offsets per method, so that their intervals do not overlap."""
    return {name: 0.4 * (i - (len(methods) - 1) / 2) for i, name in enumerate(methods)}


def _draw_dense(axes: Axes, dense: Point, metric: str, run: str) -> None:
    scale, label = metric_scale(metric), f"dense, {metric_text(metric, dense.value)}"
    if run:  # the bands of several dense models would hide each other
        label = f"{run}: {label}"
    elif dense.low is not None and dense.high is not None:
        axes.axhspan(dense.low * scale, dense.high * scale, color=GREY, alpha=0.14, linewidth=0)
        label += " (band: 95 % interval)"
    draw_dense_line(axes, dense.value * scale, label)


def _draw_line(
    axes: Axes, line: list[Point], dense: Point | None, scale: float, index: int, shift: float
) -> None:
    x = [100 * point.sparsity + shift for point in line]
    draw_points(axes, x, line, scale, index, dash_of(index))
    if dense is not None:  # connect the line to the dense model at 0 %
        start = ([0.0, x[0]], [scale * dense.value, scale * line[0].value])
        axes.plot(*start, color=colour_of(index), linestyle=dash_of(index), linewidth=1.8)
    draw_seeds(axes, x, line, scale, index)


def _draw_published(axes: Axes, points: list[Point], scale: float) -> None:
    known = {(p.sparsity, p.reference) for p in points if p.reference is not None}
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
    top = best.value if best.high is None else max(best.value, best.high)
    axes.axvline(x, color=GREY, linewidth=0.9, linestyle=":", zorder=1)
    axes.plot(
        [x],
        [scale * top],
        transform=offset_copy(axes.transData, figure, y=14, units="points"),
        linestyle="none",
        marker="*",
        markersize=16,
        markerfacecolor=STAR_COLOUR,
        markeredgecolor="black",
        markeredgewidth=1.0,
        label=f"sweet spot, {100 * best.sparsity:.0f} % with {best.method}",
        zorder=6,
    )
    bottom, ceiling = axes.get_ylim()
    axes.set_ylim(bottom, max(ceiling, scale * top + 0.08 * (ceiling - bottom)))


def _add_ordered_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        add_empty_note(axes)
        return
    # matplotlib lists lines with error bars last; move the marks below them.
    order = sorted(range(len(labels)), key=lambda i: labels[i].startswith(("published", "sweet")))
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    # The metric falls to the right, so the lower left is free. Many entries do not fit there.
    if len(handles) <= 6:
        axes.legend(handles, labels, loc="lower left", fontsize=9.5, framealpha=0.9)
        return
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9.5)
    figure.set_figwidth(10.5)
