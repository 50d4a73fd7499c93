"""What every picture shares: figures without global state, colours, PNG bytes."""

from __future__ import annotations

import io
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by people with any kind of colour blindness; the markers and
# dashes tell the lines apart in a grey print too.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
GREY = "#5F6368"


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of so many inches, at 160 dots each."""
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """Quiet axes: light horizontal lines, no box."""
    axes.grid(axis="y", color="#DADCE0", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def name_lines(axes: Axes, drawn: bool) -> None:
    """The legend beside the axes; a word in their middle where nothing is drawn."""
    if drawn:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9.5)
    else:
        axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center")


class Measured(Protocol):
    """What `mark` draws: a method's value, with its interval where it is known."""

    @property
    def method(self) -> str:
        """Its name in the legend."""

    @property
    def value(self) -> float:
        """What was measured."""

    @property
    def low(self) -> float | None:
        """Lower end of its 95 % interval."""

    @property
    def high(self) -> float | None:
        """Upper end."""


def mark(axes: Axes, x: float, point: Measured, scale: float, index: int) -> None:
    """A point with its interval as a bar, named by its method; the index gives its looks."""
    below = 0.0 if point.low is None else max(point.value - point.low, 0.0)
    above = 0.0 if point.high is None else max(point.high - point.value, 0.0)
    axes.errorbar([x], [scale * point.value], yerr=[[scale * below], [scale * above]],
                  color=PALETTE[index % len(PALETTE)], linestyle="none", markersize=7, capsize=3,
                  marker=MARKERS[(index // len(PALETTE)) % len(MARKERS)], label=point.method,
                  zorder=3)  # fmt: skip


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG; the same drawing gives the same bytes."""
    buffer = io.BytesIO()
    # matplotlib would write its version into the file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
