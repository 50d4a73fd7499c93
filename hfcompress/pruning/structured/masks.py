"""Masks on heads and neurons: one mechanism for scores, tests and previews."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hfcompress.models.sublayers import Sublayer


@contextmanager
def masked(
    model: nn.Module, parts: Sequence[Sublayer], masks: Mapping[str, Tensor]
) -> Iterator[None]:
    """Multiply the units of sublayers with masks inside (forward pre-hooks on the outputs).

    Args:
        model: any model of a known family.
        parts: its sublayers.
        masks: by sublayer; units, or rows x units for a mask of each row's own.
    """
    handles = []
    for part in parts:
        if part.name in masks:
            mask = masks[part.name].repeat_interleave(part.size, dim=-1)

            def multiply(_: nn.Module, args: Any, mask: Tensor = mask) -> tuple[Any, ...]:
                if mask.dim() == 2:  # attention in windows has several rows for each
                    mask = mask.repeat_interleave(len(args[0]) // len(mask), dim=0)[:, None]
                return (args[0] * mask, *args[1:])

            handles.append(part.out(model).register_forward_pre_hook(multiply))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
