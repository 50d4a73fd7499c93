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

from hfcompress.calibration.batches import Batch, run_on
from hfcompress.calibration.hooks import evaluating, tensors_of
from hfcompress.errors import TargetError, first_line
from hfcompress.measure.macs import frozen
from hfcompress.shrinking.channels.graph import rows_of, set_training, trace
from hfcompress.shrinking.channels.groups import ChannelGraph, ChannelGroup
from hfcompress.shrinking.channels.movements import SplitPlace
from hfcompress.shrinking.channels.sides import mixes_channels, tensor_at
from hfcompress.shrinking.channels.surgery import cut, features_left, kept_units

_NEAR = {torch.float32: 1e-3, torch.float64: 1e-7}
"""Largest difference of outputs, as a share of the largest output."""
_ROWS = 2


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
        if reason != _OTHER:
            return reason
    return reason


_OTHER = "its outputs differ from those with the channels masked"


def difference(expected: nn.Module, other: nn.Module, batch: Batch) -> str | None:
    """How two models differ on some rows, in eval or train mode, as the end of a sentence.

    Args:
        expected, other: of the same outputs, with buffers that may change.
        batch: rows; labels are not used.

    Returns:
        None where all outputs are alike; random ones need only have the same shapes.
    """
    for training in (False, True):
        wanted = _outputs(expected, batch, training)
        if isinstance(wanted, str):  # the dense model does not run in this mode either
            continue
        found = _outputs(other, batch, training)
        if isinstance(found, str):
            return f"it fails with: {found}"
        if [t.shape for t in found] != [t.shape for t in wanted]:
            return (
                f"its outputs have the shapes {[list(t.shape) for t in found]} in place of "
                f"{[list(t.shape) for t in wanted]}"
            )
        pairs = zip(found, wanted, strict=True)
        if not all(bool((a.isfinite() | ~b.isfinite()).all()) for a, b in pairs):
            return "its outputs are NaN or infinite"
        if not all(map(_near, found, wanted)):
            again = _outputs(expected, batch, training, seed=1)
            if not training or isinstance(again, str) or all(map(_near, again, wanted)):
                return _OTHER
    return None


def _near(found: Tensor, wanted: Tensor) -> bool:
    if not wanted.is_floating_point() or not wanted.numel():
        return torch.equal(found, wanted)
    near = _NEAR.get(wanted.dtype, 3e-2)
    finite = wanted[wanted.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(found, wanted, rtol=0, atol=near * scale + 1e-9, equal_nan=True)


def _outputs(model: nn.Module, batch: Batch, training: bool, seed: int = 0) -> list[Tensor] | str:
    """All tensors that a model returns; or what it raises."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    rows = {
        key: value.to(weight.dtype) if weight is not None and value.is_floating_point() else value
        for key, value in rows_of(batch, _ROWS).items()
    }
    with evaluating(model), frozen(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if training:
            set_training(model)
        try:
            return [tensor.clone() for tensor in tensors_of(run_on(model, rows))]
        except Exception as error:  # whatever a forward raises is about this width
            return first_line(error)


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
