"""A pipeline as bars: what each step keeps of the metric, and what is left of the size."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import GREY, PALETTE, new_figure, png_bytes, tidy
from hfcompress.report.rows import Row, is_percent, metric_of, metric_text, number

BARS_CAPTION = "What each step of the pipeline keeps of the metric, and what is left of the size."


def draw_bars(rows: Sequence[Row]) -> bytes:
    """The picture of `bars_figure` as PNG."""
    return png_bytes(bars_figure(rows))


def bars_figure(rows: Sequence[Row]) -> Figure:
    """Two panels, one bar for each row: the metric with its 95 % interval, and megabytes.

    Args:
        rows: in the pipeline's order, the dense model first; rows without value or bytes are
            left out.

    Raises:
        BadInputError: no row has both.
    """
    known = [
        row for row in rows
        if number(row, "value") is not None and number(row, "bytes") is not None
    ]  # fmt: skip
    if not known:
        raise BadInputError("no row has a value and bytes; run the recipe first")
    figure = new_figure(11.0, 0.62 * len(known) + 1.5)
    quality, size = figure.subplots(1, 2, sharey=True)
    _quality(quality, known)
    _size_bars(size, known)
    quality.set_yticks(range(len(known)), [str(row.get("method") or "") for row in known])
    quality.set_ylim(len(known) - 0.4, -0.6)
    return figure


def _quality(axes: Axes, rows: Sequence[Row]) -> None:
    metric = metric_of(rows)
    factor = 100 if is_percent(metric) else 1
    values = [factor * (number(row, "value") or 0.0) for row in rows]
    _plain(axes)
    axes.barh(range(len(rows)), values, height=0.62, color=PALETTE[0])
    ends = list(values)
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        low, high = number(row, "low"), number(row, "high")
        if low is not None and high is not None:
            axes.plot([factor * low, factor * high], [place, place], color="black", linewidth=1.4)
            ends[place] = max(value, factor * high)
    lows = [factor * low for row in rows if (low := number(row, "low")) is not None]
    lowest = min([*lows, *values])
    highest = max(ends)
    # Differences of a point do not show on an axis from nought; the axis says where it starts.
    start = max(0.0, lowest - 2 * max(highest - lowest, 0.01 * factor))
    span = highest - start
    for place, row in enumerate(rows):
        axes.text(ends[place] + 0.02 * span, place, metric_text(metric, number(row, "value")),
                  va="center", fontsize=10)  # fmt: skip
    axes.axvline(values[0], color=GREY, linewidth=0.9, linestyle="--")
    axes.set_xlim(start, highest + 0.24 * span)
    where = f", from {start:.3g}" if start else ""
    unit = " (%" if factor == 100 else " ("
    axes.set_xlabel(f"{metric.replace('_', ' ')}{unit}{where})".replace(" (, ", " ("))


def _size_bars(axes: Axes, rows: Sequence[Row]) -> None:
    sizes = [(number(row, "bytes") or 0.0) / 1e6 for row in rows]
    _plain(axes)
    axes.barh(range(len(rows)), sizes, height=0.62, color=PALETTE[2])
    for place, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        ratio = number(row, "compression_ratio") or (sizes[0] / size if size else 1.0)
        smaller = f"   {ratio:.1f} x smaller" if ratio > 1.005 else ""
        axes.text(size + 0.012 * max(sizes), place, f"{size:.3g} MB{smaller}", va="center",
                  fontsize=10)  # fmt: skip
    axes.set_xlim(0, 1.34 * max(sizes))
    axes.set_xlabel("size of the model's files (MB)")


def _plain(axes: Axes) -> None:
    tidy(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#DADCE0", linewidth=0.7)
    axes.tick_params(axis="y", length=0)
