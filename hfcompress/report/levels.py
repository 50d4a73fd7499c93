"""Weights in fp32 against their levels in int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import GREY, PALETTE, new_figure, png_bytes, tidy
from hfcompress.report.rows import Row

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
