"""How the values of a weight lie before and after they become integers, for a picture."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.layers.affine import quantize_layer_weights
from hfcompress.models.architectures import compressible_modules, weight_matrix

BINS = 85
"""Of the histograms, three levels each, the middle one around zero."""


def weight_levels(
    model: nn.Module, quantized: Collection[str], per_channel: bool = True, most: int = 2
) -> list[dict[str, Any]]:
    """Histograms of some layers' weights in fp32 and as int8, and how many values there are.

    Weights are counted in steps of their channel, -127 to 127, so that one axis serves all
    channels, and a batch norm that is folded into the layer changes nothing.

    Args:
        model: fp32.
        quantized: names of the modules that became integers, symmetrically.
        per_channel: a step for each output, not one for the layer.
        most: how many layers: those with the most weights, in the model's order.

    Returns:
        For each layer ``name``, ``count``, ``zeros`` (exact ones, in fp32), ``edges`` in steps,
        ``before`` (values in each bin) and ``after`` (values at each level, -127 to 127), both
        without these zeros, ``distinct_before`` and ``distinct_after``: different values, and
        different levels, zero among them.
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


def _layer(name: str, weight: Tensor, per_channel: bool) -> dict[str, Any]:
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
