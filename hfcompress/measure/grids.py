"""Pieces of weights small enough to be drawn: filters and corners of matrices, zeros kept apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hfcompress.measure.layers import weighted_layers

SIDE = 48
"""Rows and columns of a piece at most."""

_STEPS = 127


def weight_grids(
    model: nn.Module, targets: Iterable[str] | None = None, most: int = 3
) -> list[dict[str, Any]]:
    """A corner of some layers' weights: of the first, the middle and the last.

    A matrix gives its first outputs (rows) and inputs (columns); a convolution its first filters
    as tiles of kernel height x kernel width, outputs down and inputs across (a depthwise one,
    which has one input each, row after row).

    Args:
        model: any module.
        targets: names of the layers to choose from; by default every Linear, convolution, Conv1D.
        most: how many layers.

    Returns:
        For each layer ``name``, ``shape`` of the whole weight, ``tile`` (height, width),
        ``scale`` and ``codes``: whole numbers from -127 to 127, rows of the piece, a value being
        about code * scale. Only an exact zero is 0.
    """
    layers = [
        (name, weight) for name, weight in weighted_layers(model, targets).items() if weight.numel()
    ]
    count = min(most, len(layers))
    places = [round(i * (len(layers) - 1) / max(count - 1, 1)) for i in range(count)]
    modules = dict(model.named_modules())
    found = []
    for place in dict.fromkeys(places):
        name, weight = layers[place]
        piece, tile = _piece(weight.detach().float(), isinstance(modules[name], Conv1D))
        codes, scale = _codes(piece)
        found.append(
            {
                "name": name,
                "shape": list(weight.shape),
                "tile": list(tile),
                "scale": scale,
                "codes": codes,
            }
        )
    return found


def _piece(weight: Tensor, turned: bool) -> tuple[Tensor, tuple[int, int]]:
    """A matrix of at most `SIDE` rows and columns, and the size of its tiles."""
    if weight.dim() == 2:
        return (weight.t() if turned else weight)[:SIDE, :SIDE], (1, 1)
    if weight.dim() != 4:
        return weight.flatten(1)[:SIDE, :SIDE], (1, 1)
    outputs, inputs, height, width = weight.shape
    down, across = max(1, SIDE // height), max(1, SIDE // width)
    if inputs == 1:
        across = min(across, math.ceil(math.sqrt(outputs)))
        down = min(down, outputs // across)
        chosen = weight[: down * across].reshape(down, across, height, width)
    else:
        chosen = weight[:down, :across]
    grid = chosen.permute(0, 2, 1, 3).reshape(chosen.shape[0] * height, chosen.shape[1] * width)
    return grid, (height, width)


def _codes(piece: Tensor) -> tuple[list[list[int]], float]:
    largest = float(piece.abs().max())
    scale = largest / _STEPS if largest else 1.0
    rounded = (piece / scale).round()
    # What rounds to zero and is none stays apart from what is.
    kept = torch.where(rounded == 0, piece.sign(), rounded)
    return kept.to(torch.int64).tolist(), scale
