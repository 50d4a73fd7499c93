"""How much a model's heads, neurons, hidden features and layers weigh, from the weights alone.

A unit's importance is the norm of what computes it times the norm of what reads it: scaling one
up and the other down changes nothing the model computes, and does not change the product either.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfcompress.models.architectures import weight_matrix
from hfcompress.models.sublayers import Sublayer, sublayers


@torch.no_grad()
def unit_norms(model: nn.Module, sublayer: Sublayer) -> Tensor:
    """Importance of a sublayer's heads or neurons.

    Heads count what their values write; which tokens they attend to has no size.

    Returns:
        float32 (units,).
    """
    out = weight_matrix(sublayer.out(model)).float()
    rows = weight_matrix(model.get_submodule(sublayer.producers[-1])).float()
    if sublayer.kind == "heads":
        rows = rows[-out.shape[1] :]  # values come last where the projections are fused
    written = out.square().sum(0).view(-1, sublayer.size).sum(1).sqrt()
    halves = rows.square().sum(1).view(-1, written.numel(), sublayer.size).sum(2).sqrt()
    return halves.prod(0) * written  # a gated neuron is the product of its two halves


@torch.no_grad()
def feature_norms(model: nn.Module) -> Tensor:
    """Importance of the features of the hidden states, over all layers.

    Returns:
        float32 (hidden,).
    """
    written: list[Tensor] = []
    read: list[Tensor] = []
    for sublayer in sublayers(model):
        written.append(weight_matrix(sublayer.out(model)).float().square().sum(1))
        for name in sublayer.producers:
            read.append(weight_matrix(model.get_submodule(name)).float().square().sum(0))
    return torch.stack(written).sum(0).sqrt() * torch.stack(read).sum(0).sqrt()


def layer_norms(model: nn.Module) -> list[float]:
    """Importance of the layers: the sum over their heads and neurons."""
    sums: dict[str, float] = {}
    for sublayer in sublayers(model):
        own = float(unit_norms(model, sublayer).sum())
        sums[sublayer.layer] = sums.get(sublayer.layer, 0.0) + own
    return list(sums.values())
