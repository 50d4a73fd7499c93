"""Sensitivity of a model's layers as a heatmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import GREY, new_figure, png_bytes
from hfcompress.report.rows import is_percent


def draw_heatmap(
    layers: Sequence[str],
    sparsities: Sequence[float],
    values: Sequence[Sequence[float | None]],
    metric: str = "accuracy",
    dense: float | None = None,
) -> bytes:
    """The picture of `heatmap_figure` as PNG."""
    return png_bytes(heatmap_figure(layers, sparsities, values, metric, dense))


def heatmap_figure(
    layers: Sequence[str],
    sparsities: Sequence[float],
    values: Sequence[Sequence[float | None]],
    metric: str = "accuracy",
    dense: float | None = None,
) -> Figure:
    """Sensitivity: the metric when one layer alone is pruned, layer by sparsity.

    Args:
        layers: names, from input to output.
        sparsities: fractions, one per column.
        values: layers x sparsities; None or NaN where nothing was measured.
        metric: what the values are.
        dense: the dense model's value; given, colours show the drop against it.

    Raises:
        BadInputError: values of another shape.
    """
    widths = [len(line) for line in values]
    if not widths or widths != [len(sparsities)] * len(layers) or not sparsities:
        raise BadInputError(
            f"the heatmap needs {len(layers)} rows of {len(sparsities)} values, not {widths}"
        )
    grid = np.array(values, dtype=np.float64)
    scale = 100.0 if is_percent(metric) else 1.0
    shown = scale * (grid if dense is None else dense - grid)
    names, removed = _short_names(layers)
    widest = max(len(name) for name in names)
    figure = new_figure(2.4 + 0.085 * widest + 0.75 * len(sparsities), 1.4 + 0.27 * len(layers))
    axes = figure.add_subplot()
    # cividis is even in lightness and looks alike with every kind of colour vision; dark = worse.
    image = axes.imshow(shown, aspect="auto", cmap="cividis" if dense is None else "cividis_r")
    axes.set_xticks(range(len(sparsities)), [f"{100 * s:.0f}" for s in sparsities])
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_xlabel("sparsity of this layer alone (%)")
    if removed:
        axes.set_title(f"layers of {removed}", loc="left", fontsize=10)
    _write_cells(axes, image, shown, scale)
    unit = " (points)" if scale == 100 and dense is not None else " (%)" if scale == 100 else ""
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(f"{'' if dense is None else 'drop of '}{metric.replace('_', ' ')}{unit}")
    return figure


def _write_cells(axes: Axes, image: Any, shown: Any, scale: float) -> None:
    for (line, column), value in np.ndenumerate(shown):
        if not np.isfinite(value):
            axes.text(column, line, "–", ha="center", va="center", fontsize=8, color=GREY)
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
        text = f"{value:.1f}" if scale == 100 else f"{value:.3f}"
        text = "0.0" if text == "-0.0" else text.replace("-", "−")
        colour = "black" if light else "white"
        axes.text(column, line, text, ha="center", va="center", fontsize=8, color=colour)


def _short_names(layers: Sequence[str]) -> tuple[list[str], str]:
    """Layer names without the leading parts that all share, and those parts."""
    parts = [name.split(".")[:-1] for name in layers]
    depth = 0
    while len(layers) > 1 and len({tuple(part[: depth + 1]) for part in parts}) == 1:
        if depth == len(parts[0]):
            break
        depth += 1
    return [".".join(name.split(".")[depth:]) for name in layers], ".".join(parts[0][:depth])
