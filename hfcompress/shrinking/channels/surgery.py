"""Cutting channels out of every module that makes, norms or reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.errors import TargetError
from hfcompress.models.surgery import keep_along, resized
from hfcompress.shrinking.channels.graph import ChannelGroup, Place, Side, groups_in

Staying = dict[tuple[str, Side], Tensor]
"""For each cut side of a module (or bare parameter) the numbers that stay, ascending."""


def staying(
    model: nn.Module, groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]
) -> Staying:
    """What stays of each module when each group keeps some units.

    Args:
        model: as it is now.
        groups: from `trace` of it.
        keep: by group; the units that stay. A group that is not there keeps all.

    Raises:
        TargetError: a group would lose all of its units.
    """
    gone: dict[tuple[str, Side], list[Tensor]] = {}
    sizes: dict[tuple[str, Side], int] = {}
    for group in groups:
        if group.name not in keep:
            continue
        kept = torch.zeros(group.units, dtype=torch.bool)
        kept[keep[group.name]] = True
        if not bool(kept.any()):
            raise TargetError(
                f"{group.name} would lose all of its channels, and nothing would flow through "
                f"the network; keep at least one"
            )
        for place in group.places:
            key = (place.module, place.side)
            gone.setdefault(key, []).append(place.index[~kept[place.unit]])
            sizes[key] = _size(model, place)
    found: Staying = {}
    for key, lists in gone.items():
        stays = torch.ones(sizes[key], dtype=torch.bool)
        stays[torch.cat(lists)] = False
        found[key] = stays.nonzero()[:, 0]
    return found


def cut(model: nn.Module, groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]) -> Staying:
    """Remove the units that do not stay; parameters keep their identity.

    Args:
        model: changed in place.
        groups, keep: as for `staying`.

    Returns:
        what stayed of each module.

    Raises:
        TargetError: a group would lose all of its units.
    """
    found = staying(model, groups, keep)
    dimensions = {p.module: p.dimension for g in groups for p in g.of("parameter")}
    for (name, side), stays in found.items():
        if side == "parameter":
            keep_along(model.get_parameter(name), stays, dimensions[name])
            continue
        module: Any = model.get_submodule(name)
        if side == "inputs":
            width = module.weight.shape[1]
            keep_along(module.weight, (stays % width).unique(), 1)
        elif side == "outputs":
            keep_along(module.weight, stays, 0)
            if module.bias is not None:
                keep_along(module.bias, stays, 0)
        else:
            _cut_norm(module, stays)
    for name in dict.fromkeys(name for name, side in found if side != "parameter"):
        resized(model.get_submodule(name))
    return found


def _cut_norm(norm: Any, stays: Tensor) -> None:
    for tensor in (*norm._parameters.values(), *norm._buffers.values()):
        if tensor is not None and tensor.dim():  # the number of batches that it has seen has none
            keep_along(tensor, stays, 0)
    if isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (len(stays),)


def _size(model: nn.Module, place: Place) -> int:
    """How many outputs, inputs or features there are now."""
    if place.side == "parameter":
        return model.get_parameter(place.module).shape[place.dimension]
    module: Any = model.get_submodule(place.module)
    if place.side == "inputs":
        return int(module.weight.shape[1]) * groups_in(module)
    if place.side == "outputs":
        return int(module.weight.shape[0])
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    return int(getattr(module, "num_features", 0) or getattr(module, "num_channels", 0))
