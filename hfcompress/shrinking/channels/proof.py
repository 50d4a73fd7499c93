"""Proof of a cut: a network without some channels gives what it gives with them masked.

A masked channel is read by nothing: the columns of the weights that read it are zero, and norms
over several channels leave it out of their statistics. Outputs, all of them, are compared in eval
mode and in train mode. Code that counts on a width (a fixed ``view``, a buffer, a literal number
of channels) shows there, and its groups are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm, rms_norm

from hfcompress.calibration.batches import Batch
from hfcompress.errors import TargetError
from hfcompress.shrinking.channels.graph import trace
from hfcompress.shrinking.channels.groups import ChannelGraph, ChannelGroup
from hfcompress.shrinking.channels.movements import SplitPlace
from hfcompress.shrinking.channels.sides import mixes_channels, tensor_at
from hfcompress.shrinking.channels.surgery import cut, features_left, kept_units
from hfcompress.shrinking.outputs import OTHER_OUTPUTS, difference


def cuttable(model: nn.Module, batch: Batch) -> tuple[ChannelGraph, Choices, dict[str, str]]:
    """Find the groups of channels that can be removed with proof.

    Args:
        model: left as it was.
        batch: rows to run it on.

    Returns:
        the groups, the ways in which split views are narrowed, and for each group that is left
        out the reason.

    Raises:
        ModelError: the model cannot be run.
        TargetError: no group is left.
    """
    choices: Choices = {}
    graph = trace(model, batch)
    reasons = _reasons(model, graph, batch)
    for name in reasons:
        choices |= _other_choices(model, graph, name, batch, choices)
    if choices:
        graph = trace(model, batch, choices)
        reasons = _reasons(model, graph, batch)
    found = graph.without(list(reasons))
    if not found.groups:
        name, reason = next(iter(reasons.items()))
        raise TargetError(
            f"{type(model).__name__} has no channels that can be removed: without some of {name} "
            f"{reason}"
        )
    return found, choices, reasons


Choices = dict[SplitPlace, int]


def _reasons(model: nn.Module, graph: ChannelGraph, batch: Batch) -> dict[str, str]:
    """Why groups cannot be cut, alone or together with those before them."""
    keep = {group.name: _most(group) for group in graph.groups}
    if check_cut(model, graph.groups, keep, batch) is None:
        return {}
    reasons: dict[str, str] = {}
    for group in graph.groups:
        reason = check_cut(model, [group], {group.name: keep[group.name]}, batch)
        if reason is not None:
            reasons[group.name] = reason
    good: list[ChannelGroup] = [g for g in graph.groups if g.name not in reasons]
    if check_cut(model, good, keep, batch) is None:
        return reasons
    together: list[ChannelGroup] = []
    for group in good:
        reason = check_cut(model, [*together, group], keep, batch)
        if reason is None:
            together.append(group)
        else:
            reasons[group.name] = reason
    return reasons


def _other_choices(
    model: nn.Module, graph: ChannelGraph, name: str, batch: Batch, choices: Choices
) -> Choices:
    """A way to narrow a split view with which a group can be cut."""
    for place, count in graph.splits.get(name, {}).items():
        for choice in range(1, count):
            other = {**choices, place: choice}
            try:
                found = trace(model, batch, other)
            except TargetError:
                continue
            groups = [group for group in found.groups if group.name == name]
            keep = {group.name: _most(group) for group in groups}
            if groups and check_cut(model, groups, keep, batch) is None:
                return {place: choice}
    return {}


def _most(group: ChannelGroup) -> Tensor:
    """Two of three units, and one of two: a cut to try."""
    units = torch.arange(group.units)
    return units[units % 3 != 1] if group.units > 1 else units


def check_cut(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    keep: Mapping[str, Tensor],
    batch: Batch,
) -> str | None:
    """Compare a model without some channels with the same model where they are masked.

    Args:
        model: left as it was.
        groups: from `trace` of it.
        keep: by group, the units that would stay.
        batch: rows to run both on.

    Returns:
        None where they agree, else how they differ, as the end of a sentence.
    """
    reason = None
    for dtype in (None, torch.float64):  # deep networks can make much of a rounding error
        masked = copy.deepcopy(model) if dtype is None else copy.deepcopy(model).to(dtype)
        narrow = copy.deepcopy(masked)
        cut(narrow, groups, keep)
        with masked_model(masked, groups, keep):
            reason = difference(masked, narrow, batch)
        if reason != OTHER_OUTPUTS:
            return reason
    return reason


@contextmanager
def masked_model(
    model: nn.Module, groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> Iterator[None]:
    """Mask channels: nothing reads them. Weights stay changed, norms are changed inside.

    Args:
        model: changed in place.
        groups, keep: as for `check_cut`.
    """
    with torch.no_grad():
        for group in groups:
            kept = kept_units(group, keep[group.name])
            for place in group.places:
                if place.side == "inputs" or place.read:
                    gone = ~kept[place.unit]
                    for (name, dimension), index in place.slots(model):
                        tensor_at(model, name).index_fill_(dimension, index[gone], 0)
    with ExitStack() as stack:
        for path, stays in features_left(model, groups, keep).items():
            norm = model.get_submodule(path)
            if mixes_channels(norm):
                hook = norm.register_forward_hook(partial(_norm_of_kept, stays))
                stack.callback(hook.remove)
        yield


def _norm_of_kept(
    stays: Tensor, norm: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    """The output of a norm whose statistics are of some features alone."""
    weight, bias = (
        None if (value := getattr(norm, name, None)) is None else value[stays]
        for name in ("weight", "bias")
    )
    dimension = 1 if isinstance(norm, nn.GroupNorm) else output.dim() - 1
    inputs, shape = args[0].index_select(dimension, stays), (len(stays),)
    if isinstance(norm, nn.GroupNorm):
        found = group_norm(inputs, norm.num_groups, weight, bias, norm.eps)
    elif isinstance(norm, nn.RMSNorm):
        found = rms_norm(inputs, shape, weight, norm.eps)
    else:
        assert isinstance(norm, nn.LayerNorm)
        found = layer_norm(inputs, shape, weight, bias, norm.eps)
    return torch.zeros_like(output).index_copy(dimension, stays, found.to(output))
