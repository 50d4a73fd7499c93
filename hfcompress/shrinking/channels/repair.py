"""What makes up for channels that went: layers fitted anew to the dense model, batch norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.moments import Moments, grouped_weight
from hfcompress.models.architectures import weight_matrix, write_matrix
from hfcompress.shrinking.channels.graph import ChannelGraph
from hfcompress.shrinking.channels.moments import about_means, following_moments
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.plan import ShrinkContext

_TINY = 1e-12
_LEAST = 1e-6


def ridge(weight: Tensor, gram: Tensor, cross: Tensor, damping: float) -> Tensor:
    """The weight whose outputs come nearest to wanted ones, held near the old weight.

    Args:
        weight: groups x outputs x inputs.
        gram: groups x inputs x inputs, second moment of the inputs.
        cross: groups x outputs x inputs, second moment of wanted outputs and inputs.
        damping: as a share of the Gram matrices' mean diagonal.

    Returns:
        (cross + d weight) (gram + d)^-1, float64.
    """
    gram, cross = gram.double(), cross.double()
    share = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_TINY) * max(damping, _LEAST)
    matrix = gram + torch.diag_embed(share[:, None].expand(gram.shape[:2]))
    right = cross + share[:, None, None] * weight.double()
    solved: Tensor = torch.linalg.solve(matrix, right.mT).mT
    return solved


@torch.no_grad()
def repair_channels(
    model: nn.Module, graph: ChannelGraph, alive: Mapping[str, Tensor], context: ShrinkContext
) -> None:
    """Fit each layer to its outputs in the dense model, in the order of the forward pass.

    Means go into the bias, or into the batch norm that reads the layer.

    Args:
        model: shrunk; changed in place.
        graph: of the dense model.
        alive: for each layer with fewer outputs, the numbers of those that are left.
        context: the dense model, rows, and ``repair`` mean or ridge with its damping.
    """
    dense, calibration = context.dense, context.calibration
    assert calibration is not None
    first = next((i for i, name in enumerate(graph.layers) if _cut(model, dense, name)), None)
    if first is None:
        return
    todo = graph.layers[first:]
    for number, name in enumerate(todo):
        context.progress("layers", number, len(todo))
        layer: Any = model.get_submodule(name)
        outputs = alive.get(name, torch.arange(len(layer.weight)))
        moments = following_moments(name, dense, model, outputs, calibration)
        _refit(layer, moments, context.config, *_norms(model, dense, graph, name), outputs)


def _cut(model: nn.Module, dense: nn.Module, name: str) -> bool:
    """Whether the layer reads something else than the dense one: inputs went, or a filter of
    its own (a depthwise one reads fewer channels, too)."""
    now: Any = model.get_submodule(name)
    before: Any = dense.get_submodule(name)
    return bool(now.weight.shape != before.weight.shape)


def _norms(model: nn.Module, dense: nn.Module, graph: ChannelGraph, name: str) -> tuple[Any, Any]:
    if name not in graph.norms:
        return None, None
    path = graph.norms[name]
    norm: Any = model.get_submodule(path)
    if norm.running_mean is None:
        return None, None
    return norm, dense.get_submodule(path)


def _refit(
    layer: Any, moments: Moments, config: ShrinkConfig, norm: Any, dense_norm: Any, alive: Tensor
) -> None:
    assert moments.cross is not None
    assert moments.output is not None
    old = grouped_weight(layer)
    gram, cross = moments.gram.double(), moments.cross.double()
    mean, output = moments.mean.double(), moments.output.double()
    if layer.bias is not None or norm is not None:  # what takes the means
        gram = about_means(moments)
        cross = cross - output[:, :, None] * mean[:, None, :]
    new = old.double()
    if config.resolved_repair == "ridge":
        new = ridge(old, gram, cross, config.damping)
        write_matrix(layer, new.reshape(weight_matrix(layer).shape).to(old))
    made = (new @ mean[:, :, None]).flatten()
    if norm is not None:
        shift = made - output.flatten()
        bias = 0.0 if layer.bias is None else layer.bias.double()
        norm.running_mean.copy_((dense_norm.running_mean[alive].double() + shift + bias).float())
    elif layer.bias is not None:
        layer.bias.copy_((output.flatten() - made).to(layer.bias))


@torch.no_grad()
def estimate_batch_norms(model: nn.Module, calibration: Calibration) -> int:
    """Measure the running statistics of all batch norms anew.

    Args:
        model: changed in place; otherwise run in eval mode.
        calibration: all of its rows, each batch counting alike.

    Returns:
        how many batch norms there are.
    """
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    norms = [norm for norm in norms if norm.running_mean is not None]
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for index in range(len(calibration.batches)):
            calibration.run(model, index)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(norms)
