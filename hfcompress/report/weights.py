"""Figures of weights: histograms before and after, grids of single values, int8 levels.

``kept`` is what a run keeps of the weights of each row: row hash -> the fields of
`WeightDistribution`, ``dense`` (the key of the dense model's entry), ``grids`` as `weight_grids`
and ``levels`` as `weight_levels` return them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import (
    GREY,
    INK,
    LIGHT_GREY,
    colour_of,
    new_figure,
    png_bytes,
    style_axes,
)
from hfcompress.report.rows import Row, is_dense, method_of, number, quantize_step

GRIDS_CAPTION = (
    "The first filters (as tiles) or the corner of a matrix, outputs down and inputs across. Blue "
    "is negative, red positive, yellow exactly zero."
)
LEVELS_CAPTION = (
    "Weights of the largest layers in units of their channel's scale, and the most frequent ones "
    "enlarged: int8 maps every value to one of at most 255 levels. Pruned zeros are left out."
)
ZERO_COLOUR = "#F2C14E"
_ZERO_TEXT_COLOUR = "#A04000"
_MAX_HISTOGRAMS = 12
_MAX_GRIDS = 6
_SPARSE = 0.001  # sparsity from which a model counts as pruned
_LEVELS = np.arange(-127, 128)
_ZOOM = 12  # levels shown to either side in the enlarged part

Shares = NDArray[np.float64]


# --- histograms --------------------------------------------------------------------------------


@dataclass(frozen=True)
class HistogramPanel:
    """One panel of `histogram_figure`.

    Attributes:
        title: above the panel.
        after: with ``edges`` (bins + 1), ``counts`` (bins, non-zero values), ``zeros`` and
            optionally ``count`` (all values).
        before: the same of the dense model, or None.
    """

    title: str
    after: Row
    before: Row | None = None


def histogram_panels(rows: Sequence[Row], kept: Mapping[str, Row]) -> list[HistogramPanel]:
    """A panel for each method and sparsity, from its first row with a histogram.

    Returns:
        At most twelve panels, method by method, by rising sparsity.
    """
    compressed = [row for row in rows if not is_dense(row)]
    found = _first_kept(compressed, kept, "counts")
    methods = list(dict.fromkeys(method for method, _ in found))
    order = sorted(found, key=lambda key: (methods.index(key[0]), key[1]))
    panels = []
    for method, place in order[:_MAX_HISTOGRAMS]:
        sparsity, after = found[method, place]
        before = kept.get(str(after.get("dense")))
        panels.append(HistogramPanel(f"{method}, {100 * sparsity:.0f} %", after, before))
    return panels


def draw_histograms(panels: Sequence[HistogramPanel]) -> bytes:
    """`histogram_figure` as PNG."""
    return png_bytes(histogram_figure(panels))


def histogram_figure(panels: Sequence[HistogramPanel]) -> Figure:
    """Weight histograms before and after compression, with the zeros as a separate bar.

    Raises:
        BadInputError: no panel, or edges that do not match their counts.
    """
    if not panels:
        raise BadInputError("there are no histograms to draw; give at least one panel")
    columns = 4 if len(panels) % 4 == 0 else min(len(panels), 3)
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(max(6.4, 4.0 * columns), 3.6 * lines + 0.3)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(lines, columns, index + 1)
        _draw_histograms(axes, panel)
        if index % columns == 0:
            axes.set_ylabel("share of weights per bin (%)")
        if index >= len(panels) - columns:
            axes.set_xlabel("weight")
    return figure


def _draw_histograms(axes: Axes, panel: HistogramPanel) -> None:
    style_axes(axes)
    if panel.before is not None:
        edges, shares = _histogram_shares(panel.before)
        axes.stairs(shares, edges, fill=True, color=LIGHT_GREY, alpha=0.55, label="before")
    edges, shares = _histogram_shares(panel.after)
    axes.stairs(shares, edges, color=colour_of(0), linewidth=1.6, label="after")
    top = max(float(np.max(shares)), float(axes.get_ylim()[1]), 1e-9)
    axes.set_ylim(0, 1.18 * top)
    zeros = 100 * panel.after["zeros"] / _count(panel.after)
    if zeros:
        _draw_zero_bar(axes, 1.05 * top, f"{zeros:.1f} % are zero\n(bar not to scale)")
    axes.set_title(panel.title, loc="left", fontsize=11)
    axes.legend(loc="upper left", fontsize=9, frameon=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _draw_zero_bar(axes: Axes, height: float, text: str) -> None:
    axes.plot([0, 0], [0, height], color=colour_of(1), linewidth=2.4, solid_capstyle="butt")
    axes.plot([0], [height], marker="^", color=colour_of(1), markersize=7)
    axes.annotate(
        text, (0, height), xytext=(8, -2), textcoords="offset points", va="center",
        fontsize=9, color=_ZERO_TEXT_COLOUR,
    )  # fmt: skip


def _histogram_shares(histogram: Row) -> tuple[Shares, Shares]:
    """Edges, and the percentage of all weights in each bin."""
    edges = _checked_edges(histogram["edges"], histogram["counts"])
    return edges, 100 * np.asarray(histogram["counts"], float) / _count(histogram)


def _count(histogram: Row) -> float:
    known = histogram.get("count")
    return max(float(known or sum(histogram["counts"]) + histogram["zeros"]), 1.0)


# --- grids -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GridPanel:
    """One column of `grid_figure`: a title, and one grid of `weight_grids` per layer."""

    title: str
    grids: Sequence[Row]


def grid_panels(rows: Sequence[Row], kept: Mapping[str, Row]) -> list[GridPanel]:
    """A panel for each method and sparsity, from its first row with grids.

    Returns:
        At most six panels by rising sparsity, spread evenly; none if no row is sparse.
    """
    found = _first_kept(rows, kept, "grids")
    if not any(sparsity >= _SPARSE for _, sparsity in found):
        return []
    order = sorted(found, key=lambda key: key[1])
    if len(order) > _MAX_GRIDS:
        places = np.linspace(0, len(order) - 1, _MAX_GRIDS).round().astype(int)
        order = [order[place] for place in places]
    panels = []
    for method, place in order:
        sparsity, weights = found[method, place]
        title = f"{method}, {100 * sparsity:.0f} % zeros" if sparsity >= _SPARSE else method
        panels.append(GridPanel(title, weights["grids"]))
    return panels


def draw_grids(panels: Sequence[GridPanel]) -> bytes:
    """`grid_figure` as PNG."""
    return png_bytes(grid_figure(panels))


def grid_figure(panels: Sequence[GridPanel]) -> Figure:
    """Single weights as coloured cells: one column per panel, one line per layer.

    Raises:
        BadInputError: no panel.
    """
    if not panels:
        raise BadInputError("there are no weights to draw; give at least one panel")
    heights = [
        max(_relative_height(panel.grids[line]) for panel in panels if line < len(panel.grids))
        for line in range(max(len(panel.grids) for panel in panels))
    ]
    width = max(5.0, 2.9 * len(panels))
    figure = new_figure(width, (width / len(panels) + 0.1) * sum(heights) + 0.4)
    places = figure.add_gridspec(len(heights), len(panels), height_ratios=heights)
    first = panels[0].grids
    for column, panel in enumerate(panels):
        for line, grid in enumerate(panel.grids):
            axes = figure.add_subplot(places[line, column])
            axes.set_anchor("N")
            _draw_grid(axes, grid)
            if line == 0:
                axes.set_title(panel.title, fontsize=10.5, loc="left")
            if column == 0:
                axes.set_ylabel(_grid_label(grid), fontsize=8)
            elif _grid_label(grid) != _grid_label(first[min(line, len(first) - 1)]):
                axes.set_xlabel(_grid_label(grid), fontsize=7)  # another layer, or another shape
    return figure


def _draw_grid(axes: Axes, grid: Row) -> None:
    codes = np.asarray(grid["codes"], float)
    limit = max(float(np.quantile(np.abs(codes), 0.98)), 1.0)
    axes.imshow(
        np.ma.masked_equal(codes, 0), cmap="RdBu_r", vmin=-limit, vmax=limit,
        interpolation="nearest",
    )  # fmt: skip
    zeros = np.ma.masked_not_equal(codes, 0)
    axes.imshow(zeros, cmap=ListedColormap([ZERO_COLOUR]), interpolation="nearest")
    height, width = grid["tile"]
    if (height, width) != (1, 1):
        for place in range(height, codes.shape[0], height):
            axes.axhline(place - 0.5, color=INK, linewidth=0.6)
        for place in range(width, codes.shape[1], width):
            axes.axvline(place - 0.5, color=INK, linewidth=0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _relative_height(grid: Row) -> float:
    """Height over width of a grid as drawn, with room for its label."""
    codes = grid["codes"]
    return max(len(codes) / max(len(codes[0]), 1), 0.4)


def _grid_label(grid: Row) -> str:
    """The last parts of the layer's name, and the shape of its whole weight."""
    name = ".".join(str(grid["name"]).split(".")[-4:])
    if len(name) > 34:
        name = f"…{name[-33:]}"
    return f"{name}\n{' x '.join(str(size) for size in grid['shape'])}"


# --- int8 levels -------------------------------------------------------------------------------


def level_layers(rows: Sequence[Row], kept: Mapping[str, Row]) -> list[Row]:
    """The layers of the first row with levels; empty without one."""
    for row in filter(quantize_step, rows):
        levels = (kept.get(str(row.get("hash"))) or {}).get("levels")
        if levels:
            return list(levels)
    return []


def draw_levels(layers: Sequence[Row]) -> bytes:
    """`level_figure` as PNG."""
    return png_bytes(level_figure(layers))


def level_figure(layers: Sequence[Row]) -> Figure:
    """For each layer its histogram in fp32 and int8, and a part of it enlarged.

    Args:
        layers: as `weight_levels` returns them.

    Raises:
        BadInputError: no layer, or edges that do not match their counts.
    """
    if not layers:
        raise BadInputError("there are no levels to draw; give at least one layer")
    figure = new_figure(11.0, 3.5 * len(layers) + 0.2)
    grid = figure.subplots(len(layers), 2, squeeze=False)
    for (whole, part), layer in zip(grid, layers, strict=True):
        _draw_levels(whole, layer)
        _draw_levels_enlarged(part, layer)
    for axes in grid[-1]:
        axes.set_xlabel("weight / scale of its channel")
    return figure


def _draw_levels(axes: Axes, layer: Row) -> None:
    style_axes(axes)
    edges, before, after = _level_shares(layer)
    grouped = np.histogram(_LEVELS, edges, weights=after)[0] / (edges[1] - edges[0])
    axes.stairs(before, edges, fill=True, color=LIGHT_GREY, alpha=0.55,
                label=f"fp32: {layer['distinct_before']:,} values")  # fmt: skip
    axes.stairs(grouped, edges, color=colour_of(0), linewidth=1.5,
                label=f"int8: {layer['distinct_after']} levels")  # fmt: skip
    axes.set_ylim(0, 1.35 * max(float(before.max()), float(grouped.max()), 1e-9))
    axes.set_title(str(layer["name"]), loc="left", fontsize=10.5)
    axes.set_ylabel("share of weights per level (%)")
    axes.legend(loc="upper left", fontsize=9, frameon=False)
    if layer["zeros"]:
        share = 100 * layer["zeros"] / layer["count"]
        axes.text(0.985, 0.95, f"{share:.0f} % are zero, before and after", ha="right", va="top",
                  transform=axes.transAxes, fontsize=9, color=_ZERO_TEXT_COLOUR)  # fmt: skip


def _draw_levels_enlarged(axes: Axes, layer: Row) -> None:
    style_axes(axes)
    edges, before, after = _level_shares(layer)
    fullest = int(np.argmax(before))
    middle = round(float(edges[fullest] + edges[fullest + 1]) / 2)
    middle = min(max(middle, _ZOOM - 127), 127 - _ZOOM)
    axes.stairs(before, edges, fill=True, color=LIGHT_GREY, alpha=0.55)
    shown = np.abs(_LEVELS - middle) <= _ZOOM
    axes.bar(_LEVELS[shown], after[shown], width=0.22, color=colour_of(0))
    axes.set_xlim(middle - _ZOOM - 0.6, middle + _ZOOM + 0.6)
    axes.set_ylim(0, 1.2 * max(float(after[shown].max()), float(before.max()), 1e-9))
    axes.set_title("enlarged, one bar per level", loc="left", fontsize=10.5, color=GREY)


def _level_shares(layer: Row) -> tuple[Shares, Shares, Shares]:
    """Edges, and the percentage of weights per level: in each bin before, at each level after."""
    edges, count = _checked_edges(layer["edges"], layer["before"]), max(layer["count"], 1)
    before = 100 * np.asarray(layer["before"], float) / count / (edges[1] - edges[0])
    return edges, before, 100 * np.asarray(layer["after"], float) / count


# --- shared ------------------------------------------------------------------------------------


def _first_kept(
    rows: Sequence[Row], kept: Mapping[str, Row], field: str
) -> dict[tuple[str, float], tuple[float, Row]]:
    """(method, rounded sparsity) -> sparsity and entry of the first row whose entry has a field."""
    found: dict[tuple[str, float], tuple[float, Row]] = {}
    for row in rows:
        sparsity = number(row, "actual_sparsity")
        key = None if sparsity is None else (method_of(row), round(sparsity, 3))
        if sparsity is None or key is None or key in found:
            continue
        weights = kept.get(str(row.get("hash"))) or {}  # read from disk
        if weights.get(field):
            found[key] = (sparsity, weights)
    return found


def _checked_edges(edges: Sequence[float], counts: Sequence[float]) -> Shares:
    if len(edges) != len(counts) + 1:
        raise BadInputError(
            f"a histogram has {len(edges)} edges for {len(counts)} counts; give one edge more than "
            "counts"
        )
    return np.asarray(edges, float)
