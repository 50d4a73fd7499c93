"""The sensitivity of a model's layers to pruning, as a heatmap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import (
    GREY,
    add_title,
    metric_label,
    metric_scale,
    new_figure,
    png_bytes,
)


def draw_heatmap(
    layers: Sequence[str],
    sparsities: Sequence[float],
    values: Sequence[Sequence[float | None]],
    metric: str = "accuracy",
    dense: float | None = None,
) -> bytes:
    """`heatmap_figure` as PNG."""
    return png_bytes(heatmap_figure(layers, sparsities, values, metric, dense))


def heatmap_figure(
    layers: Sequence[str],
    sparsities: Sequence[float],
    values: Sequence[Sequence[float | None]],
    metric: str = "accuracy",
    dense: float | None = None,
) -> Figure:
    """The metric with a single layer pruned, by layer and sparsity.

    Args:
        layers: names, from input to output.
        sparsities: fractions, one per column.
        values: layers x sparsities; None or NaN where not measured.
        metric: the metric of the values.
        dense: the dense model's value; if given, cells show the drop against it.

    Raises:
        BadInputError: values of a different shape.
    """
    widths = [len(line) for line in values]
    if not widths or widths != [len(sparsities)] * len(layers) or not sparsities:
        raise BadInputError(
            f"give {len(layers)} rows of {len(sparsities)} values, one row per layer and one value "
            f"per sparsity, not rows of {widths}"
        )
    grid = np.array(values, dtype=np.float64)
    scale = metric_scale(metric)
    shown = scale * (grid if dense is None else dense - grid)
    names, removed = _short_names(layers)
    widest = max(len(name) for name in names)
    figure = new_figure(2.4 + 0.085 * widest + 0.75 * len(sparsities), 1.4 + 0.27 * len(layers))
    axes = figure.add_subplot()
    # cividis has even lightness and looks the same with any colour vision; dark is worse.
    image = axes.imshow(shown, aspect="auto", cmap="cividis" if dense is None else "cividis_r")
    axes.set_xticks(range(len(sparsities)), [f"{100 * s:.0f}" for s in sparsities])
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_xlabel("sparsity of this layer alone (%)")
    if removed:
        axes.set_title(f"layers of {removed}", loc="left", fontsize=10)
    _write_cells(axes, image, shown, scale)
    label = metric_label(metric)
    if dense is not None:
        label = f"drop of {metric_label(metric, 'points' if scale == 100 else None)}"
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(label)
    return figure


def settings_figure(
    values: Mapping[float, Mapping[float, float]],
    rows: str,
    columns: str,
    metric: str = "accuracy",
    title: str | None = None,
) -> Figure:
    """The metric by two settings, such as alpha and temperature, as a heatmap.

    Args:
        values: value of the first setting -> of the second -> the metric; what is missing is left
            open.
        rows, columns: names of the settings.
        metric: the metric of the values.
        title: above the axes.

    Raises:
        BadInputError: no value.
    """
    along = sorted({column for line in values.values() for column in line})
    if not along:
        raise BadInputError("there is no value to draw; give {0.5: {1: 0.91, 2: 0.92}}")
    scale = metric_scale(metric)
    lines = [[values[row].get(column, np.nan) for column in along] for row in values]
    shown = scale * np.array(lines, dtype=np.float64)
    figure = new_figure(2.4 + 0.75 * len(along), 1.6 + 0.4 * len(values))
    axes = figure.add_subplot()
    image = axes.imshow(shown, aspect="auto", cmap="cividis")
    axes.set_xticks(range(len(along)), [f"{value:g}" for value in along])
    axes.set_yticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set_xlabel(columns)
    axes.set_ylabel(rows)
    add_title(axes, title)
    _write_cells(axes, image, shown, scale)
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02).set_label(metric_label(metric))
    return figure


def _write_cells(axes: Axes, image: AxesImage, shown: NDArray[np.float64], scale: float) -> None:
    colours = np.asarray(image.cmap(image.norm(shown)))
    for (line, column), value in np.ndenumerate(shown):
        if not np.isfinite(value):
            axes.text(column, line, "–", ha="center", va="center", fontsize=8, color=GREY)
            continue
        red, green, blue, _ = colours[line, column]
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
        text = f"{value:.1f}" if scale == 100 else f"{value:.3f}"
        text = "0.0" if text == "-0.0" else text.replace("-", "−")
        colour = "black" if light else "white"
        axes.text(column, line, text, ha="center", va="center", fontsize=8, color=colour)


def _short_names(layers: Sequence[str]) -> tuple[list[str], str]:
    """Layer names without their common prefix, and the prefix."""
    parts = [name.split(".")[:-1] for name in layers]
    depth = 0
    while len(layers) > 1 and len({tuple(part[: depth + 1]) for part in parts}) == 1:
        if depth == len(parts[0]):
            break
        depth += 1
    return [".".join(name.split(".")[depth:]) for name in layers], ".".join(parts[0][:depth])
