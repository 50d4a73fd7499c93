"""Repair after channels are removed: refit layers to the dense model, estimate batch norms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.moments import Moments, grouped_weight, weight_of
from hfcompress.models.matrices import weight_matrix, write_matrix
from hfcompress.shrinking.channels.groups import ChannelGraph
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
        layer = model.get_submodule(name)
        outputs = alive.get(name, torch.arange(len(weight_of(layer))))
        moments = following_moments(name, dense, model, outputs, calibration)
        if moments is None:
            continue
        means = running_norm(model, graph, name), running_norm(dense, graph, name)
        _refit(layer, moments, context.config, *means, outputs)


def _cut(model: nn.Module, dense: nn.Module, name: str) -> bool:
    """Whether the layer reads other inputs than the dense one: fewer, or by a filter of
    its own (a depthwise one reads fewer channels, too)."""
    now, before = (weight_of(one.get_submodule(name)) for one in (model, dense))
    return now.shape != before.shape


def running_norm(model: nn.Module, graph: ChannelGraph, name: str) -> Tensor | None:
    """The running mean of the batch norm that alone reads a layer, where it keeps one."""
    norm = model.get_submodule(graph.norms[name]) if name in graph.norms else None
    mean = getattr(norm, "running_mean", None)
    return mean if isinstance(mean, Tensor) else None


def _refit(
    layer: nn.Module,
    moments: Moments,
    config: ShrinkConfig,
    running: Tensor | None,
    dense_running: Tensor | None,
    alive: Tensor,
) -> None:
    assert moments.cross is not None
    assert moments.output is not None
    old = grouped_weight(layer)
    gram, cross = moments.gram.double(), moments.cross.double()
    mean, output = moments.mean.double(), moments.output.double()
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    if bias is not None or running is not None:  # what takes the means
        gram = about_means(moments)
        cross = cross - output[:, :, None] * mean[:, None, :]
    new = old.double()
    if config.resolved_repair == "ridge":
        new = ridge(old, gram, cross, config.damping)
        write_matrix(layer, new.reshape(weight_matrix(layer).shape).to(old))
    made = (new @ mean[:, :, None]).flatten()
    if running is not None and dense_running is not None:
        shift = made - output.flatten()
        added = 0.0 if bias is None else bias.double()
        running.copy_((dense_running[alive].double() + shift + added).float())
    elif bias is not None:
        bias.copy_((output.flatten() - made).to(bias))


@torch.no_grad()
def estimate_batch_norms(model: nn.Module, calibration: Calibration) -> int:
    """Measure the running statistics of all batch norms anew.

    Args:
        model: changed in place; otherwise run in eval mode.
        calibration: all of its rows, each batch counting alike.

    Returns:
        how many batch norms there are.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
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
