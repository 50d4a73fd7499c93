"""Pictures of models and of measured rows, as matplotlib figures::

    figure = plots.weight_histograms({"90 %": pruned}, before=dense)
    figure.savefig("weights.png")

Models go in, or data: the rows of `hfcompress.run`, `hfcompress.bench` or a pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from matplotlib.figure import Figure
from torch import Tensor, nn

from hfcompress.errors import BadInputError
from hfcompress.measure.macs import weighted_layers
from hfcompress.measure.weights import analyze_weight_distribution, weight_grids
from hfcompress.quantization.weight_levels import weight_levels
from hfcompress.report.bench import bench_figure
from hfcompress.report.classes import class_figure
from hfcompress.report.costs import costs_figure
from hfcompress.report.curve import curve_figure
from hfcompress.report.feasibility import feasibility_figure
from hfcompress.report.heatmap import heatmap_figure, settings_figure
from hfcompress.report.pipeline import bars_figure
from hfcompress.report.plotting import (
    add_legend,
    colour_of,
    marker_of,
    metric_label,
    metric_scale,
    new_figure,
    style_axes,
)
from hfcompress.report.rows import Row
from hfcompress.report.scatter import file_size_figure, speedup_figure, student_figure
from hfcompress.report.temperature import TEMPERATURES, temperature_figure
from hfcompress.report.weights import (
    GridPanel,
    HistogramPanel,
    grid_figure,
    histogram_figure,
    level_figure,
)

Weights = nn.Module | Tensor
Given = TypeVar("Given")

accuracy_curve = curve_figure
accuracy_and_size = file_size_figure
accuracy_and_latency = speedup_figure
accuracy_size_and_latency = costs_figure
students = student_figure
pipeline_bars = bars_figure
latency_bars = bench_figure
class_bars = class_figure
heatmap = heatmap_figure
settings_heatmap = settings_figure

__all__ = [
    "accuracy_and_latency", "accuracy_and_size", "accuracy_curve", "accuracy_size_and_latency",
    "bit_widths", "class_bars", "feasibility_chart", "heatmap", "integer_levels", "latency_bars",
    "pipeline_bars", "settings_heatmap", "softmax_temperatures", "students", "weight_cells",
    "weight_histograms",
]  # fmt: skip


def weight_histograms(
    after: Weights | Mapping[str, Weights], before: Weights | None = None, bins: int = 81
) -> Figure:
    """Return histograms of weights before and after, with the zeros as a spike of their own.

    Args:
        after: a model or a tensor, or several by their titles.
        before: the dense model or tensor, drawn behind each.
        bins: of equal width; those of ``before`` are used for all.

    Raises:
        TargetError: nothing with weights.
        ModelError: a weight with NaN or infinity.
    """
    dense = None if before is None else analyze_weight_distribution(before, bins=bins)
    edges = None if dense is None else dense.edges
    named: dict[str, Weights] = _titled(after)
    panels = [
        HistogramPanel(
            title,
            analyze_weight_distribution(weights, bins=bins, edges=edges).to_dict(),
            None if dense is None else dense.to_dict(),
        )
        for title, weights in named.items()
    ]
    return histogram_figure(panels)


def weight_cells(
    models: nn.Module | Mapping[str, nn.Module], layers: Sequence[str] | None = None
) -> Figure:
    """Return the first filters, or the corner of a matrix, as coloured cells; zeros are yellow.

    Args:
        models: one, or several by their titles (several sparsities).
        layers: names of modules; by default the first and the last with weights.

    Raises:
        TargetError: a layer that a model does not have.
    """
    panels = []
    for title, model in _titled(models).items():
        names = list(weighted_layers(model, None))
        shown = list(layers) if layers is not None else [names[0], names[-1]]
        panels.append(GridPanel(title, weight_grids(model, shown)))
    return grid_figure(panels)


def integer_levels(model: nn.Module, layers: Sequence[str], per_channel: bool = True) -> Figure:
    """Return fp32 weights beside the int8 levels that they are rounded to.

    Args:
        model: fp32.
        layers: names of Linears or convolutions; the two largest are drawn.
        per_channel: one scale for each output instead of one for the layer.

    Raises:
        BadInputError: none of the layers has weights.
    """
    return level_figure([dict(found) for found in weight_levels(model, layers, per_channel)])


def softmax_temperatures(
    logits: Tensor | Sequence[Sequence[float]],
    temperatures: Sequence[float] = TEMPERATURES,
    labels: Sequence[str] = (),
) -> Figure:
    """Return the softmax of some examples at rising temperatures, a panel for each example.

    Args:
        logits: examples x classes.
        temperatures: each above 0.
        labels: names of the classes; their numbers by default.

    Raises:
        BadInputError: no example, or a temperature of 0 or less.
    """
    rows = logits.detach().cpu().tolist() if isinstance(logits, Tensor) else logits
    return temperature_figure(rows, temperatures, labels)


def bit_widths(
    values: Mapping[str, Mapping[int, float]],
    metric: str = "accuracy",
    dense: float | None = None,
) -> Figure:
    """Return a metric over the bits of the weights, one line for each way to round them.

    Args:
        values: way -> bits -> the metric.
        metric: its name.
        dense: the fp32 model's value, as a dashed line.

    Raises:
        BadInputError: no value.
    """
    if not any(values.values()):
        raise BadInputError("there is no value to draw; give {'per tensor': {8: 0.9, 4: 0.8}}")
    figure = new_figure(7.0, 4.2)
    axes, scale = figure.subplots(), metric_scale(metric)
    style_axes(axes)
    bits = sorted({number for line in values.values() for number in line}, reverse=True)
    for index, (name, line) in enumerate(values.items()):
        known = [number for number in bits if number in line]
        axes.plot(
            [bits.index(number) for number in known], [scale * line[number] for number in known],
            color=colour_of(index), marker=marker_of(index), linewidth=1.8, label=name,
        )  # fmt: skip
    if dense is not None:
        axes.axhline(scale * dense, color="#5F6368", dashes=(6, 3), linewidth=1.3, label="fp32")
    axes.set_xticks(range(len(bits)), [str(number) for number in bits])
    axes.set_xlabel("bits of a weight")
    axes.set_ylabel(metric_label(metric))
    add_legend(axes)
    return figure


class _Needs(Protocol):
    """What `hfcompress.feasibility` says of a model."""

    def to_dict(self) -> Row: ...


def feasibility_chart(found: Sequence[_Needs | Row]) -> Figure:
    """Return a cell for each model and place: "fits", or what speaks against it.

    Args:
        found: what `hfcompress.feasibility` returned, or the rows of its ``--json``.

    Raises:
        BadInputError: no model.
    """
    if not found:
        raise BadInputError("there is no model to draw; give what hfcompress.feasibility returned")
    return feasibility_figure([one if isinstance(one, Mapping) else one.to_dict() for one in found])


def _titled(given: Given | Mapping[str, Given]) -> dict[str, Given]:
    return dict(given) if isinstance(given, Mapping) else {type(given).__name__: given}
