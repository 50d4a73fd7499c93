"""Weight histograms before and after compression."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import PALETTE, new_figure, png_bytes, tidy
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
