"""Cutting channels out of every module that makes, norms or reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hfcompress.errors import TargetError
from hfcompress.models.surgery import keep_along, resized
from hfcompress.shrinking.channels.groups import ChannelGroup
from hfcompress.shrinking.channels.sides import (
    Slot,
    own_tensors,
    set_norm_width,
    side_size,
    tensors_by_name,
)

Staying = dict[Slot, Tensor]
"""For each cut dimension of a parameter or buffer the numbers that stay, ascending."""


def staying(
    model: nn.Module, groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> Staying:
    """The part of each parameter and buffer that stays when each group keeps some units.

    Args:
        model: as it is now.
        groups: from `trace` of it.
        keep: by group; the units that stay. A group that is not there keeps all.

    Raises:
        TargetError: a group would lose all of its units.
    """
    tensors = tensors_by_name(model)
    names = {id(tensor): name for name, tensor in tensors.items()}
    every = {name: names[id(tensor)] for name, _, _, tensor in own_tensors(model)}
    stays: Staying = {}
    for group in groups:
        if group.name not in keep:
            continue
        kept = kept_units(group, keep[group.name])
        for place in group.places:
            gone = ~kept[place.unit]
            for (name, dimension), index in place.slots(model):
                slot = (every[name], dimension)
                size = tensors[slot[0]].shape[dimension]
                flags = stays.setdefault(slot, torch.ones(size, dtype=torch.bool))
                flags[index[gone]] = False
    return {slot: flags.nonzero()[:, 0] for slot, flags in stays.items()}


def kept_units(group: ChannelGroup, keep: Tensor) -> Tensor:
    """For each unit of a group whether it stays.

    Raises:
        TargetError: none does.
    """
    kept = torch.zeros(group.units, dtype=torch.bool)
    kept[keep] = True
    if not bool(kept.any()):
        raise TargetError(
            f"{group.name} would lose all of its channels, and nothing would flow through "
            f"the network; keep at least one"
        )
    return kept


def cut(model: nn.Module, groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]) -> Staying:
    """Remove the units that do not stay; parameters keep their identity.

    Args:
        model: changed in place.
        groups, keep: as for `staying`.

    Returns:
        what stayed of each parameter and buffer.

    Raises:
        TargetError: a group would lose all of its units.
    """
    found = staying(model, groups, keep)
    widths = features_left(model, groups, keep)
    tensors = tensors_by_name(model)
    for (name, dimension), stays in found.items():
        keep_along(tensors[name], stays, dimension)
    touched = {id(tensors[name]) for name, _ in found}
    modules = {id(m): m for _, m, _, tensor in own_tensors(model) if id(tensor) in touched}
    for module in modules.values():
        resized(module)
    for path, stays in widths.items():
        set_norm_width(model.get_submodule(path), len(stays))
    return found


def features_left(
    model: nn.Module, groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """For each norm that would lose features, the numbers of those that stay."""
    flags: dict[str, Tensor] = {}
    for group in groups:
        if group.name not in keep:
            continue
        kept = kept_units(group, keep[group.name])
        for place in group.of("features"):
            size = side_size(model.get_submodule(place.module), "features")
            own = flags.setdefault(place.module, torch.ones(size, dtype=torch.bool))
            own[place.index[~kept[place.unit]]] = False
    return {path: own.nonzero()[:, 0] for path, own in flags.items() if not bool(own.all())}
