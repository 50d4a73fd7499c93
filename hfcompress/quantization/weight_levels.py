"""Histograms of weights before and after quantization, for a plot."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypedDict

import torch
from torch import Tensor, nn

from hfcompress.layers.affine import quantize_layer_weights
from hfcompress.models.architectures import compressible_modules
from hfcompress.models.matrices import weight_matrix

BINS = 85
"""Bins of the histograms: three levels each, the middle bin around zero."""


class LayerLevels(TypedDict):
    """The histogram of one layer's weights.

    ``edges`` are in steps; ``before`` counts values by bin, ``after`` counts them by level, -127 to
    127, both without the ``zeros`` that are exact in fp32. ``distinct_before`` counts different
    values, ``distinct_after`` different levels, zero included.
    """

    name: str
    count: int
    zeros: int
    edges: list[float]
    before: list[int]
    after: list[int]
    distinct_before: int
    distinct_after: int


def weight_levels(
    model: nn.Module, quantized: Collection[str], per_channel: bool = True, most: int = 2
) -> list[LayerLevels]:
    """Return histograms of some layers' weights in fp32 and in int8.

    Weights are counted in steps of their channel, -127 to 127, so that all channels share one axis
    and a batch norm that is folded into the layer has no effect.

    Args:
        model: fp32.
        quantized: names of the modules with symmetric integer weights.
        per_channel: one step for each output instead of one for the layer.
        most: number of layers: those with the most weights, in the model's order.

    Returns:
        One `LayerLevels` for each layer.
    """
    modules = {
        name: module for name, module in compressible_modules(model).items() if name in quantized
    }
    sizes = {name: weight_matrix(module).numel() for name, module in modules.items()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:most]
    return [
        _layer(name, weight_matrix(module).float(), per_channel)
        for name, module in modules.items()
        if name in largest
    ]


def _layer(name: str, weight: Tensor, per_channel: bool) -> LayerLevels:
    made = quantize_layer_weights(weight, per_channel=per_channel)
    kept = weight != 0
    steps = (weight / made.scale.view(-1, 1))[kept]
    half = BINS * 3 / 2
    after = torch.bincount(made.values[kept].long() + 127, minlength=255)
    return {
        "name": name,
        "count": weight.numel(),
        "zeros": weight.numel() - int(kept.sum()),
        "edges": torch.linspace(-half, half, BINS + 1).tolist(),
        "before": [int(count) for count in torch.histc(steps, BINS, -half, half).tolist()],
        "after": after.tolist(),
        "distinct_before": int(weight.unique().numel()),  # type: ignore[no-untyped-call]
        "distinct_after": int(made.values.unique().numel()),  # type: ignore[no-untyped-call]
    }
