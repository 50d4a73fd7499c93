"""Proof of a cut: a network without some channels gives what it gives with them masked.

A masked channel is read by nothing: the columns of the weights that read it are zero, and norms
over several channels leave it out of their statistics. Outputs, all of them, are compared in eval
mode and in train mode. Code that counts on a width (a fixed ``view``, a buffer, a literal number
of channels) shows there, and its groups are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.functional import group_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from hfcompress.calibration.batches import Batch
from hfcompress.errors import TargetError
from hfcompress.shrinking.channels.graph import trace
from hfcompress.shrinking.channels.groups import ChannelGraph, ChannelGroup
from hfcompress.shrinking.channels.movements import Arguments, SplitPlace
from hfcompress.shrinking.channels.sides import mixes_channels, tensor_at
from hfcompress.shrinking.channels.surgery import cut, features_left, kept_units
from hfcompress.shrinking.outputs import difference, runs
from hfcompress.utils import is_pretrained


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
    graph, unsaved = _saveable(model, trace(model, batch))
    reasons = _reasons(model, graph, batch)
    for name in reasons:
        choices |= _other_choices(model, graph, name, batch, choices)
    if choices:
        graph, unsaved = _saveable(model, trace(model, batch, choices))
        reasons = _reasons(model, graph, batch)
    reasons |= unsaved
    found = graph.without(list(reasons))
    if not found.groups:
        name, reason = next(iter(reasons.items()))
        raise TargetError(
            f"{type(model).__name__} has no channels that can be removed: without some of {name} "
            f"{reason}"
        )
    return found, choices, reasons


Choices = dict[SplitPlace, int]


def _saveable(model: nn.Module, graph: ChannelGraph) -> tuple[ChannelGraph, dict[str, str]]:
    """The graph without groups whose shapes a checkpoint of transformers could not record."""
    if not is_pretrained(model):
        return graph, {}
    from hfcompress.checkpoint.shapes import is_resizable  # imports transformers

    reasons: dict[str, str] = {}
    for group in graph.groups:
        changed: dict[str, list[str]] = {}
        for place in group.places:
            for (name, _), _ in place.slots(model):
                path, _, last = name.rpartition(".")
                changed.setdefault(path, []).append(last)
        for path, names in changed.items():
            module = model.get_submodule(path)
            if not is_resizable(module, dict.fromkeys(names)):
                kind = type(module).__name__
                reasons[group.name] = f"no checkpoint could say the shapes of {path}, a {kind}"
    return graph.without(list(reasons)), reasons


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
    masked = copy.deepcopy(model).double()  # a wrong column can matter less than rounding errors
    if not runs(masked, batch):
        masked = copy.deepcopy(model)
    narrow = copy.deepcopy(masked)
    cut(narrow, groups, keep)
    with masked_model(masked, groups, keep):
        return difference(masked, narrow, batch)


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
                        weight = tensor_at(model, name)
                        weight.index_fill_(dimension, index[gone].to(weight.device), 0)
    left = features_left(model, groups, keep)
    mixing = {path: stays for path, stays in left.items() if mixes_channels(model, path)}
    with _MaskedNorms(model, mixing):
        yield


class _MaskedNorms(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes the statistics of some norms over the features that stay.

    Operators are changed and not modules, whose code can permute and reshape around them.

    Args:
        model: that will run inside.
        left: for each norm the features that stay.
    """

    def __init__(self, model: nn.Module, left: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self._left = left
        self._running: list[str] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> _MaskedNorms:
        for path in self._left:
            norm = self._model.get_submodule(path)
            enter, leave = partial(self._enter, path), partial(self._leave)
            self._handles.append(norm.register_forward_pre_hook(enter))
            self._handles.append(norm.register_forward_hook(leave, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _enter(self, path: str, _: nn.Module, args: object) -> None:
        self._running.append(path)

    def _leave(self, _: nn.Module, args: object, output: object) -> None:
        self._running.pop()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run an operator, a norm on fewer features."""
        name = func.overloadpacket.__name__
        if not self._running or name not in ("native_layer_norm", "native_group_norm"):
            return func(*args, **(kwargs or {}))
        stays = self._left[self._running[-1]]
        named = Arguments(func, args, kwargs or {})
        inputs, weight, bias = (named[key] for key in ("input", "weight", "bias"))
        assert isinstance(inputs, Tensor)
        stays = stays.to(inputs.device)
        scale = weight[stays] if isinstance(weight, Tensor) else None
        shift = bias[stays] if isinstance(bias, Tensor) else None
        eps = cast(float, named["eps"])
        dim = inputs.dim() - 1 if name == "native_layer_norm" else 1
        chosen = inputs.index_select(dim, stays)
        if name == "native_layer_norm":
            found, *rest = torch.native_layer_norm(chosen, [len(stays)], scale, shift, eps)
        else:
            groups = named.number("group")
            found = group_norm(chosen, groups, scale, shift, eps)
            rest = [chosen.new_zeros(len(chosen), groups)] * 2
        return torch.zeros_like(inputs).index_copy(dim, stays, found.to(inputs)), *rest
