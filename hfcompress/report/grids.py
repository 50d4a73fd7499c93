"""Filters and corners of weight matrices at each sparsity, zeros in a colour of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import new_figure, png_bytes
from hfcompress.report.rows import Row, number

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
