"""What all figures share: colours, axes, legends, points with intervals, PNG bytes.

Figures are made without pyplot, so that drawing changes no global state.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from hfcompress.report.rows import Point, is_percent

# Okabe and Ito (2008): distinguishable with any colour vision deficiency. Markers and dashes keep
# the lines distinguishable in greyscale.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
GREY = "#5F6368"
LIGHT_GREY = "#9AA0A6"
GRID_COLOUR = "#DADCE0"
INK = "#202124"
STAR_COLOUR = "#F0E442"


def colour_of(index: int) -> str:
    """The colour of the line or bar with this index."""
    return PALETTE[index % len(PALETTE)]


def marker_of(index: int) -> str:
    """The marker with this index; with `colour_of`, the first 49 pairs differ."""
    return MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


def dash_of(index: int) -> str:
    """The line style with this index; it changes when the colours repeat."""
    return DASHES[(index // len(PALETTE)) % len(DASHES)]


class PlainFigure(Figure):
    """A figure that draws its text as it is: names of classes and layers hold dollar signs, which
    matplotlib reads as formulas."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw as a figure does, without formulas."""
        # Labels of ticks are made while the figure is drawn.
        with rc_context({"text.parse_math": False}):
            for text in self.findobj(Text):
                text.set_parse_math(False)
            super().draw(renderer)


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of this size in inches, at 160 dpi."""
    figure = PlainFigure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    # Without this, matplotlib writes its version into the file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def style_axes(axes: Axes) -> None:
    """Remove the box of a plot with vertical values and add light horizontal grid lines."""
    axes.grid(axis="y", color=GRID_COLOUR, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def style_bar_axes(axes: Axes) -> None:
    """As `style_axes`, for horizontal bars: vertical grid lines and no ticks beside the names."""
    axes.grid(axis="x", color=GRID_COLOUR, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def add_title(axes: Axes, title: str | None) -> None:
    """Write a title above the axes, aligned left; nothing without a title."""
    if title:
        axes.set_title(title, loc="left", fontsize=12)


def add_legend(axes: Axes) -> None:
    """Put a legend beside the axes, or a note into empty axes."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9.5)
    else:
        add_empty_note(axes)


def add_empty_note(axes: Axes) -> None:
    """Write into axes without data that nothing is measured."""
    axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center")


def metric_scale(metric: str) -> float:
    """The factor from a metric's value to what is shown: 100 for percent, else 1."""
    return 100.0 if is_percent(metric) else 1.0


def metric_label(metric: str, unit: str | None = None) -> str:
    """The axis label of a metric: its name, and its unit in brackets.

    Args:
        metric: its name.
        unit: ``%`` by default for metrics shown in percent, else none.
    """
    unit = unit if unit is not None else "%" if is_percent(metric) else ""
    return metric.replace("_", " ") + (f" ({unit})" if unit else "")


def draw_points(
    axes: Axes,
    x: Sequence[float],
    points: Sequence[Point],
    scale: float,
    index: int,
    linestyle: str = "none",
) -> None:
    """Draw points of one method with their 95 % intervals, labelled by the first one's method.

    Args:
        axes: drawn into.
        x: a position for each point.
        points: at least one.
        scale: as `metric_scale`.
        index: selects colour and marker.
        linestyle: of the line between the points.
    """
    below = [0.0 if p.low is None else scale * max(p.value - p.low, 0.0) for p in points]
    above = [0.0 if p.high is None else scale * max(p.high - p.value, 0.0) for p in points]
    axes.errorbar(
        x, [scale * point.value for point in points], yerr=[below, above],
        color=colour_of(index), marker=marker_of(index), markersize=6.5, linestyle=linestyle,
        linewidth=1.8, elinewidth=1.1, capsize=3, label=points[0].method, zorder=3,
    )  # fmt: skip


def draw_seeds(
    axes: Axes, x: Sequence[float], points: Sequence[Point], scale: float, index: int
) -> None:
    """Draw the value of every seed as a faint dot, where a point averages several."""
    for place, point in zip(x, points, strict=True):
        if len(point.values) > 1:
            values = [scale * value for value in point.values]
            axes.plot(
                [place] * len(values), values, ".",
                color=colour_of(index), alpha=0.5, markersize=8,
            )  # fmt: skip


def draw_dense_line(axes: Axes, value: float, label: str | None = None) -> None:
    """Draw the dense model's value, scaled, as a dashed horizontal line."""
    axes.axhline(value, color=GREY, linewidth=1.3, dashes=(6, 3), label=label)
