"""Masks on channels, where they are read: for scores and tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.shrinking.channels.graph import ChannelGroup, Place, groups_in


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
                layer: Any = model.get_submodule(place.module)
                hook = partial(_multiply, place, masks[group.name])
                stack.callback(layer.register_forward_pre_hook(hook).remove)
        yield


def _multiply(place: Place, mask: Tensor, layer: nn.Module, args: Any) -> tuple[Any, ...]:
    weight: Any = layer.weight
    rows = mask if mask.dim() == 2 else mask[None]
    factor = torch.ones(len(rows), weight.shape[1] * groups_in(layer), dtype=rows.dtype)
    factor = factor.index_copy(1, place.index, rows[:, place.unit])
    inputs: Tensor = args[0]
    between = (1,) * (inputs.dim() - 2)
    last = isinstance(layer, nn.Linear)
    shape = (len(rows), *between, -1) if last else (len(rows), -1, *between)
    return (inputs * factor.view(shape), *args[1:])
