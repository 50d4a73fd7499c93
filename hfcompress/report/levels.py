"""Weights in fp32 against their levels in int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfcompress.errors import BadInputError
from hfcompress.report.canvas import GREY, PALETTE, new_figure, png_bytes, tidy
from hfcompress.report.rows import Row

CAPTION = (
    "Weights of the largest layers in steps of their channel, and the same zoomed in: what was "
    "any number is one of at most 255 levels."
)
_ZOOM = 12


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
    """For each layer its whole histogram, and its middle with each level as a bar.

    Args:
        layers: mappings with ``name``, ``count``, ``edges``, ``before``, ``after`` (counts of the
            levels -128 to 127), ``distinct_before`` and ``distinct_after``.

    Raises:
        BadInputError: no layer.
    """
    if not layers:
        raise BadInputError("there are no levels to draw; give at least one layer")
    figure = new_figure(11.0, 3.5 * len(layers) + 0.2)
    for line, layer in enumerate(layers):
        whole = figure.add_subplot(len(layers), 2, 2 * line + 1)
        middle = figure.add_subplot(len(layers), 2, 2 * line + 2)
        _whole(whole, layer)
        _middle(middle, layer)
        if line == len(layers) - 1:
            for axes in (whole, middle):
                axes.set_xlabel("weight, in steps of its channel")
    return figure


def _whole(axes: Axes, layer: Mapping[str, Any]) -> None:
    tidy(axes)
    edges, width = _edges(layer)
    before = np.asarray(layer["before"]) / layer["count"] / width
    after = np.asarray(layer["after"]) / layer["count"]
    levels = np.arange(-128, 128)
    grouped = np.histogram(levels, edges, weights=after)[0] / _per_bin(edges)
    axes.stairs(100 * before, edges, fill=True, color="#9AA0A6", alpha=0.55,
                label=f"fp32: {layer['distinct_before']:,} values")  # fmt: skip
    axes.stairs(100 * grouped, edges, color=PALETTE[0], linewidth=1.5,
                label=f"int8: {layer['distinct_after']} levels")  # fmt: skip
    axes.set_ylim(0, 1.3 * 100 * max(before.max(), grouped.max()))
    axes.set_title(str(layer["name"]), loc="left", fontsize=10.5)
    axes.set_ylabel("share of weights per step (%)")
    axes.legend(loc="upper left", fontsize=9, frameon=False)


def _middle(axes: Axes, layer: Mapping[str, Any]) -> None:
    tidy(axes)
    edges, width = _edges(layer)
    before = 100 * np.asarray(layer["before"]) / layer["count"] / width
    after = 100 * np.asarray(layer["after"]) / layer["count"]
    levels = np.arange(-128, 128)
    axes.stairs(before, edges, fill=True, color="#9AA0A6", alpha=0.55)
    seen = np.abs(levels) <= _ZOOM
    axes.bar(levels[seen], after[seen], width=0.22, color=PALETTE[0])
    axes.set_xlim(-_ZOOM - 0.6, _ZOOM + 0.6)
    shown = after[seen & (levels != 0)]
    top = 1.25 * max(float(shown.max(initial=0.0)), float(before.max()), 1e-9)
    axes.set_ylim(0, top)
    if after[128] > top:  # a pruned layer: its zeros would hide all else
        axes.annotate(f"{after[128]:.0f} % are 0", (0, top), xytext=(6, -12), color="#A04000",
                      textcoords="offset points", fontsize=9)  # fmt: skip
    axes.set_title("its middle, level by level", loc="left", fontsize=10.5, color=GREY)


def _edges(layer: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], float]:
    edges = np.asarray(layer["edges"], float)
    if len(edges) != len(layer["before"]) + 1:
        raise BadInputError(
            f"a histogram has {len(edges)} edges for {len(layer['before'])} counts; it needs one "
            f"more"
        )
    return edges, float(edges[1] - edges[0])


def _per_bin(edges: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How many whole levels lie in each bin."""
    found: np.ndarray[Any, Any] = np.histogram(np.arange(-128, 128), edges)[0]
    least: np.ndarray[Any, Any] = np.maximum(found, 1)
    return least
