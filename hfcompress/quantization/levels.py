"""How the values of a weight lie before and after they become integers, for a picture."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.architectures import compressible_modules, weight_matrix
from hfcompress.quantization.affine import quantize_layer_weights

BINS = 101


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
        For each layer ``name``, ``count``, ``edges`` in steps, ``before`` and ``after`` (counts),
        ``distinct_before``, and ``distinct_after``: different values, and different levels.
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
    steps = weight / made.scale.view(-1, 1)
    edges = torch.linspace(-128, 128, BINS)
    return {
        "name": name,
        "count": weight.numel(),
        "edges": edges.tolist(),
        "before": _counts(steps, edges),
        "after": torch.bincount((made.values.flatten().long() + 128), minlength=256).tolist(),
        "distinct_before": int(weight.unique().numel()),  # type: ignore[no-untyped-call]
        "distinct_after": int(made.values.unique().numel()),  # type: ignore[no-untyped-call]
    }


def _counts(values: Tensor, edges: Tensor) -> list[int]:
    low, high = float(edges[0]), float(edges[-1])
    counts = torch.histc(values.clamp(low, high), bins=len(edges) - 1, min=low, max=high)
    return [int(count) for count in counts.tolist()]
