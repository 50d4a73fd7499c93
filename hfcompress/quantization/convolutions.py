"""What is special about networks of convolutions: their share of the work, folded batch norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hfcompress.measure.layers import evaluation_mode
from hfcompress.models.architectures import compressible_modules

DYNAMIC_LEAVES_CONVOLUTIONS = (
    "dynamic quantization does nothing for Conv2d, which gains in int8 only where the ranges of "
    "activations are known beforehand; mode: static takes convolutions, with calibration data"
)


def share_of_convolutions(model: nn.Module) -> float:
    """Share of a model's matrix and kernel weights that ``nn.Conv2d`` holds; 0 without weights.

    A ViT's patch embedding is a convolution, and a small part of it.
    """
    held = {True: 0, False: 0}
    for module in compressible_modules(model).values():
        held[isinstance(module, nn.Conv2d)] += module.get_parameter("weight").numel()
    return held[True] / sum(held.values()) if sum(held.values()) else 0.0


def is_convolutional(model: nn.Module) -> bool:
    """Whether convolutions hold most of the weights."""
    return share_of_convolutions(model) > 0.5


def folded_norms(model: nn.Module, inputs: Mapping[str, Any]) -> set[str]:
    """Names of the batch norms that read what one convolution puts out, and nothing else does.

    Evaluation makes such a norm a scale and a shift for each channel: the convolution's weight
    and bias take them up, and the norm is gone (Jacob et al. 2018, 1712.05877, section 3.2).

    Args:
        model: run once, in evaluation mode.
        inputs: keyword arguments of its forward.
    """
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, torch.Tensor] = {}
    found: set[str] = set()

    def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = output  # kept, so that no other tensor gets its number
        elif isinstance(module, _BatchNorm) and given and id(given[0]) in made:
            found.add(names[module])

    handles = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, _BatchNorm))
    ]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
