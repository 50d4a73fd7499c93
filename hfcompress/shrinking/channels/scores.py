"""Importance of channels, one number for each unit of a group; higher is worth more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hfcompress.calibration.batches import Calibration, require_labels, row_count, task_loss
from hfcompress.calibration.hooks import evaluating
from hfcompress.errors import CalibrationError, TargetError
from hfcompress.shrinking.channels.groups import ChannelGraph, ChannelGroup, Place
from hfcompress.shrinking.channels.sides import (
    Side,
    channel_dimension,
    side_size,
    tensor_at,
)
from hfcompress.shrinking.config import Score


def channel_scores(
    model: nn.Module, graph: ChannelGraph, score: Score, calibration: Calibration | None
) -> dict[str, Tensor]:
    """The score of each unit of each group; nothing for ``reconstruction``.

    Args:
        model: left as it was.
        graph: from `trace` of it.
        score: ``magnitude``: Euclidean norm of all weights that make or read a unit (the group
            norm of Fang et al. 2023, DepGraph, arXiv 2301.12900); ``l1``: sum of the absolute
            weights that make it (Li et al. 2017, arXiv 1608.08710); ``batch_norm``: mean
            absolute scale of its batch norms (Liu et al. 2017, Network Slimming, arXiv
            1708.06519); ``taylor``, ``fisher``: see `mask_gradients`.
        calibration: labelled rows for the last two.

    Raises:
        TargetError: ``batch_norm`` where a group has none.
        CalibrationError: rows without labels, or NaN in a gradient.
    """
    if score == "reconstruction":
        return {}
    if score in ("taylor", "fisher"):
        assert calibration is not None
        return mask_gradients(model, graph.groups, calibration, squared=score == "fisher")
    rule = {"magnitude": weight_norms, "l1": _absolute_sum, "batch_norm": _norm_scale}[score]
    with torch.no_grad():
        return {group.name: rule(model, group) for group in graph.groups}


def weight_norms(model: nn.Module, group: ChannelGroup) -> Tensor:
    """The Euclidean norm of all weights that make or read each unit."""
    return _summed(model, group, ("outputs", "inputs"), torch.square).sqrt()


def _absolute_sum(model: nn.Module, group: ChannelGroup) -> Tensor:
    return _summed(model, group, ("outputs",), torch.abs)


def _norm_scale(model: nn.Module, group: ChannelGroup) -> Tensor:
    total, count = torch.zeros(group.units), torch.zeros(group.units)
    for place in group.of("features"):
        norm = model.get_submodule(place.module)
        if isinstance(norm, _BatchNorm) and norm.affine:
            total.index_add_(0, place.unit, norm.weight.detach().float().abs()[place.index])
            count.index_add_(0, place.unit, torch.ones(len(place.unit)))
    if not bool(count.all()):
        raise TargetError(
            f"{group.name} has no batch norm whose scale could be a score; write another score"
        )
    return total / count


def _summed(
    model: nn.Module,
    group: ChannelGroup,
    sides: Sequence[Side],
    measure: Callable[[Tensor], Tensor],
) -> Tensor:
    """For each unit the sum of a measure of the weights on some sides, and of bare weights."""
    total = torch.zeros(group.units)
    for place in group.places:
        side = place.side
        if side == "parameter":
            side = "inputs" if place.read else "outputs"
        for (name, dimension), _ in place.slots(model) if side in sides else ():
            weight = tensor_at(model, name).detach().float()
            if weight.dim() > 1:
                sums = _sums(measure(weight), dimension, int(place.index.max()))
                total.index_add_(0, place.unit, sums[place.index])
    return total


def _sums(values: Tensor, dimension: int, last: int) -> Tensor:
    """For each channel the sum of a weight's values; groups of a layer have rows of their own."""
    if dimension == 0:
        return values.flatten(1).sum(1)
    width = values.shape[dimension]
    parts = last // width + 1
    split = values.movedim(dimension, 1).reshape(parts, len(values) // parts, width, -1)
    return split.sum((1, 3)).flatten()


def mask_gradients(
    model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration, *, squared: bool
) -> dict[str, Tensor]:
    """Mean over the rows of the loss's absolute or squared gradient by each unit's mask.

    Absolute is first-order Taylor (Molchanov et al. 2017, arXiv 1611.06440), squared the diagonal
    of the Fisher matrix (Liu et al. 2021, Group Fisher, arXiv 2108.00708).

    Args:
        model: run in eval mode, left as it was.
        groups: from `trace` of it.
        calibration: labelled rows.
        squared: Fisher instead of Taylor.

    Raises:
        TargetError: a group that only bare parameters read.
        CalibrationError: rows without labels, or NaN in a gradient.
    """
    for group in groups:
        if not group.of("inputs"):
            raise TargetError(
                f"no module reads the channels of {group.name}, so that they cannot be masked; "
                f"write score: magnitude"
            )
    sums = {group.name: torch.zeros(group.units) for group in groups}
    with evaluating(model), torch.enable_grad():
        for batch in calibration.batches:
            require_labels(batch)
            count = row_count(batch)
            masks = {g.name: torch.ones(count, g.units, requires_grad=True) for g in groups}
            with masked_channels(model, groups, masks):
                loss = task_loss(model, batch) * count  # the mean over rows, made their sum
            # Channels that are read in train mode alone do not reach this loss.
            gradients = torch.autograd.grad(
                loss, list(masks.values()), allow_unused=True, materialize_grads=True
            )
            for name, gradient in zip(masks, gradients, strict=True):
                if not bool(torch.isfinite(gradient).all()):
                    raise CalibrationError(f"the gradient of {name}'s mask is NaN or infinite")
                sums[name] += (gradient.square() if squared else gradient.abs()).sum(0)
    return {name: total / calibration.rows for name, total in sums.items()}


@contextmanager
def masked_channels(
    model: nn.Module, groups: Sequence[ChannelGroup], masks: Mapping[str, Tensor]
) -> Iterator[None]:
    """Multiply channels with masks wherever a layer reads them, inside.

    Args:
        model: any module.
        groups: from `trace` of it.
        masks: by group; units, or rows x units for a mask of each row's own.
    """
    with ExitStack() as stack:
        for group in groups:
            if group.name not in masks:
                continue
            for place in group.of("inputs"):
                layer = model.get_submodule(place.module)
                hook = partial(_multiply, place, masks[group.name])
                stack.callback(layer.register_forward_pre_hook(hook).remove)
        yield


def _multiply(
    place: Place, mask: Tensor, layer: nn.Module, args: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    rows = mask if mask.dim() == 2 else mask[None]
    factor = torch.ones(len(rows), side_size(layer, "inputs"), dtype=rows.dtype)
    factor = factor.index_copy(1, place.index, rows[:, place.unit])
    inputs = args[0]
    if isinstance(layer, nn.RNNBase) and not layer.batch_first and len(rows) > 1:
        return (inputs * factor[None], *args[1:])
    repeats = len(inputs) // len(rows) if len(rows) > 1 else 1
    factor = factor.repeat_interleave(repeats, 0)  # a row may be several by now (patches, frames)
    between = (1,) * (inputs.dim() - 2)
    last = channel_dimension(layer) == -1
    shape = (len(factor), *between, -1) if last else (len(factor), -1, *between)
    return (inputs * factor.view(shape), *args[1:])
