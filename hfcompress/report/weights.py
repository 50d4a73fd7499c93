"""Weight histograms before and after compression."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import GREY, PALETTE, new_figure, png_bytes, tidy
from hfcompress.report.rows import Row, is_dense, number

MOST_PANELS = 12


def weight_panels(
    rows: Sequence[Row], histograms: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Panels for `draw_weights` from the histograms that a run keeps.

    Args:
        rows: any rows; each method and sparsity gives one panel, of its first seed.
        histograms: row hash -> the histogram after, whose ``dense`` names the key of the one
            before; both as `WeightDistribution.plain` gives them.

    Returns:
        At most twelve panels, the methods one after another, each by rising sparsity.
    """
    chosen: dict[tuple[str, float], dict[str, Any]] = {}
    for row in rows:
        after = histograms.get(str(row.get("hash")))
        sparsity = number(row, "actual_sparsity")
        if after is None or sparsity is None or is_dense(row):
            continue
        method = str(row.get("method") or "compressed")
        panel = {
            "title": f"{method}, {100 * sparsity:.0f} %",
            "before": histograms.get(str(after.get("dense"))),
            "after": after,
        }
        chosen.setdefault((method, round(sparsity, 3)), panel)
    methods = list(dict.fromkeys(method for method, _ in chosen))
    order = sorted(chosen, key=lambda key: (methods.index(key[0]), key[1]))
    return [chosen[key] for key in order[:MOST_PANELS]]


def draw_weights(panels: Sequence[Mapping[str, Any]]) -> bytes:
    """The picture of `weights_figure` as PNG."""
    return png_bytes(weights_figure(panels))


def weights_figure(panels: Sequence[Mapping[str, Any]]) -> Figure:
    """Weight histograms before and after pruning, the spike at zero as a bar of its own.

    Args:
        panels: mappings with ``title``, ``before`` and ``after``; each of the latter two holds
            ``edges`` (bins + 1), ``counts`` (bins, non-zero values), ``zeros`` and optionally
            ``count`` (all values); ``before`` may be missing.

    Raises:
        BadInputError: no panel, or edges that do not fit their counts.
    """
    if not panels:
        raise BadInputError("there are no histograms to draw; give at least one panel")
    columns = 4 if len(panels) % 4 == 0 else min(len(panels), 3)
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(max(6.4, 4.0 * columns), 3.6 * lines + 0.3)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(lines, columns, index + 1)
        tidy(axes)
        _draw_histograms(axes, panel)
        if index % columns == 0:
            axes.set_ylabel("share of weights per bin (%)")
        if index >= len(panels) - columns:
            axes.set_xlabel("weight")
    return figure


def _draw_histograms(axes: Axes, panel: Mapping[str, Any]) -> None:
    before, after = panel.get("before"), panel["after"]
    if before is not None:
        edges, shares = _shares(before)
        axes.stairs(shares, edges, fill=True, color="#9AA0A6", alpha=0.55, label="before")
    edges, shares = _shares(after)
    axes.stairs(shares, edges, color=PALETTE[0], linewidth=1.6, label="after")
    top = max(float(np.max(shares)), float(axes.get_ylim()[1]), 1e-9)
    axes.set_ylim(0, 1.18 * top)
    spike = 100 * after["zeros"] / _total(after)
    if spike:
        axes.plot([0, 0], [0, 1.05 * top], color=PALETTE[1], linewidth=2.4, solid_capstyle="butt")
        axes.plot([0], [1.05 * top], marker="^", color=PALETTE[1], markersize=7)
        axes.annotate(
            f"{spike:.1f} % are zero\n(bar not to scale)",
            (0, 1.05 * top),
            xytext=(8, -2),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color="#A04000",
        )
    axes.set_title(str(panel.get("title", "")), loc="left", fontsize=11)
    axes.legend(loc="upper left", fontsize=9, frameon=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _shares(histogram: Mapping[str, Any]) -> tuple[Any, Any]:
    edges, counts = np.asarray(histogram["edges"]), np.asarray(histogram["counts"])
    if len(edges) != len(counts) + 1:
        raise BadInputError(
            f"a histogram has {len(edges)} edges for {len(counts)} counts; it needs one more"
        )
    return edges, 100 * counts / _total(histogram)


def _total(histogram: Mapping[str, Any]) -> float:
    known = histogram.get("count")
    return max(float(known or sum(histogram["counts"]) + histogram["zeros"]), 1.0)


MOST_COLUMNS = 6
ZERO = "#F2C14E"
GRIDS_CAPTION = (
    "The first filters (tiles) or the corner of a matrix, outputs down and inputs across. Blue is "
    "negative, red positive, yellow exactly zero."
)


def grid_panels(
    rows: Sequence[Row], weights: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What `draw_grids` draws, from what a run keeps of its weights.

    Args:
        rows: any rows; one of each method and sparsity is taken, the sparsest last.
        weights: row hash -> what is kept, with ``grids`` as `weight_grids` gives them.

    Returns:
        At most six mappings with ``title`` and ``grids``; none where no row has zeros.
    """
    chosen: dict[tuple[str, float], dict[str, Any]] = {}
    for row in rows:
        grids = (weights.get(str(row.get("hash"))) or {}).get("grids")
        sparsity = number(row, "actual_sparsity")
        if not grids or sparsity is None:
            continue
        name = str(row.get("method") or "compressed")
        title = f"{name}, {100 * sparsity:.0f} % zeros" if sparsity >= 0.001 else name
        chosen.setdefault((name, round(sparsity, 3)), {"title": title, "grids": grids})
    if not any(sparsity >= 0.001 for _, sparsity in chosen):
        return []
    order = sorted(chosen, key=lambda key: key[1])
    if len(order) > MOST_COLUMNS:  # evenly, the densest and the sparsest among them
        places = np.linspace(0, len(order) - 1, MOST_COLUMNS).round().astype(int)
        order = [order[place] for place in places]
    return [chosen[key] for key in order]


def draw_grids(panels: Sequence[Mapping[str, Any]]) -> bytes:
    """The picture of `grids_figure` as PNG."""
    return png_bytes(grids_figure(panels))


def grids_figure(panels: Sequence[Mapping[str, Any]]) -> Figure:
    """One column for each panel, one line for each layer.

    Args:
        panels: as `grid_panels` gives them.

    Raises:
        BadInputError: no panel.
    """
    if not panels:
        raise BadInputError("there are no weights to draw; give at least one panel")
    heights = [
        max(_shape_of(panel["grids"][line]) for panel in panels if line < len(panel["grids"]))
        for line in range(max(len(panel["grids"]) for panel in panels))
    ]
    width = max(5.0, 2.9 * len(panels))
    figure = new_figure(width, (width / len(panels) + 0.1) * sum(heights) + 0.4)
    places = figure.add_gridspec(len(heights), len(panels), height_ratios=heights)
    for column, panel in enumerate(panels):
        for line, grid in enumerate(panel["grids"]):
            axes = figure.add_subplot(places[line, column])
            axes.set_anchor("N")
            _draw(axes, grid)
            if line == 0:
                axes.set_title(str(panel["title"]), fontsize=10.5, loc="left")
            if column == 0:
                axes.set_ylabel(_label(grid), fontsize=8)
            elif _label(grid) != _label(panels[0]["grids"][min(line, len(panels[0]["grids"]) - 1)]):
                axes.set_xlabel(_label(grid), fontsize=7)  # another layer, or another shape
    return figure


def _draw(axes: Axes, grid: Mapping[str, Any]) -> None:
    codes = np.asarray(grid["codes"], float)
    limit = max(float(np.quantile(np.abs(codes), 0.98)), 1.0)
    axes.imshow(
        np.ma.masked_equal(codes, 0), cmap="RdBu_r", vmin=-limit, vmax=limit,
        interpolation="nearest",
    )  # fmt: skip
    zeros = np.ma.masked_not_equal(codes, 0)
    axes.imshow(zeros, cmap=ListedColormap([ZERO]), interpolation="nearest")
    height, width = grid["tile"]
    if (height, width) != (1, 1):
        for place in range(height, codes.shape[0], height):
            axes.axhline(place - 0.5, color="#202124", linewidth=0.6)
        for place in range(width, codes.shape[1], width):
            axes.axvline(place - 0.5, color="#202124", linewidth=0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def _shape_of(grid: Mapping[str, Any]) -> float:
    """Height by width of a piece as it is drawn, room for its label being left."""
    codes = grid["codes"]
    return max(len(codes) / max(len(codes[0]), 1), 0.4)


def _label(grid: Mapping[str, Any]) -> str:
    """The layer's last names, and the shape of all of its weight."""
    name = ".".join(str(grid["name"]).split(".")[-4:])
    if len(name) > 34:
        name = f"…{name[-33:]}"
    return f"{name}\n{' x '.join(str(size) for size in grid['shape'])}"


LEVELS_CAPTION = (
    "Weights of the largest layers in steps of their channel, and the most usual of them nearer: "
    "what was any number is one of at most 255 levels. Zeros of pruning are left out."
)
_ZOOM = 12
_LEVELS = np.arange(-127, 128)
Shares = NDArray[np.float64]


def level_panels(
    rows: Sequence[Row], weights: Mapping[str, Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The layers of the first row that has any; as `weight_levels` gives them."""
    for row in rows:
        levels = (weights.get(str(row.get("hash"))) or {}).get("levels")
        if levels:
            return list(levels)
    return []


def draw_levels(layers: Sequence[Mapping[str, Any]]) -> bytes:
    """The picture of `levels_figure` as PNG."""
    return png_bytes(levels_figure(layers))


def levels_figure(layers: Sequence[Mapping[str, Any]]) -> Figure:
    """For each layer its whole histogram, and a part of it with each level as a bar.

    Args:
        layers: as `weight_levels` gives them.

    Raises:
        BadInputError: no layer.
    """
    if not layers:
        raise BadInputError("there are no levels to draw; give at least one layer")
    figure = new_figure(11.0, 3.5 * len(layers) + 0.2)
    for line, layer in enumerate(layers):
        whole = figure.add_subplot(len(layers), 2, 2 * line + 1)
        part = figure.add_subplot(len(layers), 2, 2 * line + 2)
        _whole(whole, layer)
        _part(part, layer)
        if line == len(layers) - 1:
            for axes in (whole, part):
                axes.set_xlabel("weight, in steps of its channel")
    return figure


def _whole(axes: Axes, layer: Mapping[str, Any]) -> None:
    tidy(axes)
    edges, before, after = _level_shares(layer)
    width = edges[1] - edges[0]
    grouped = np.histogram(_LEVELS, edges, weights=after)[0] / width
    axes.stairs(before, edges, fill=True, color="#9AA0A6", alpha=0.55,
                label=f"fp32: {layer['distinct_before']:,} values")  # fmt: skip
    axes.stairs(grouped, edges, color=PALETTE[0], linewidth=1.5,
                label=f"int8: {layer['distinct_after']} levels")  # fmt: skip
    axes.set_ylim(0, 1.35 * max(float(before.max()), float(grouped.max()), 1e-9))
    axes.set_title(str(layer["name"]), loc="left", fontsize=10.5)
    axes.set_ylabel("share of weights per step (%)")
    axes.legend(loc="upper left", fontsize=9, frameon=False)
    if layer["zeros"]:
        share = 100 * layer["zeros"] / layer["count"]
        axes.text(0.985, 0.95, f"{share:.0f} % are zero, before and after", ha="right", va="top",
                  transform=axes.transAxes, fontsize=9, color="#A04000")  # fmt: skip


def _part(axes: Axes, layer: Mapping[str, Any]) -> None:
    tidy(axes)
    edges, before, after = _level_shares(layer)
    bin_of_most = int(np.argmax(before))
    middle = round(float(edges[bin_of_most] + edges[bin_of_most + 1]) / 2)
    middle = min(max(middle, _ZOOM - 127), 127 - _ZOOM)
    axes.stairs(before, edges, fill=True, color="#9AA0A6", alpha=0.55)
    seen = np.abs(_LEVELS - middle) <= _ZOOM
    axes.bar(_LEVELS[seen], after[seen], width=0.22, color=PALETTE[0])
    axes.set_xlim(middle - _ZOOM - 0.6, middle + _ZOOM + 0.6)
    axes.set_ylim(0, 1.2 * max(float(after[seen].max()), float(before.max()), 1e-9))
    axes.set_title("nearer, level by level", loc="left", fontsize=10.5, color=GREY)


def _level_shares(layer: Mapping[str, Any]) -> tuple[Shares, Shares, Shares]:
    """Edges, and percent of the weights per step: before, and at each level."""
    edges = np.asarray(layer["edges"], float)
    if len(edges) != len(layer["before"]) + 1:
        raise BadInputError(
            f"a histogram has {len(edges)} edges for {len(layer['before'])} counts; it needs one "
            f"more"
        )
    count = max(layer["count"], 1)
    before = 100 * np.asarray(layer["before"], float) / count / (edges[1] - edges[0])
    return edges, before, 100 * np.asarray(layer["after"], float) / count
