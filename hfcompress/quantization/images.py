"""Which images a classifier reads: the size that an exported graph is made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

IMAGE_INPUT = "pixel_values"
ImageShape = tuple[int, int, int]
"""Channels, height and width."""

# What image processors cut to where nobody says otherwise.
_USUAL_SIDE = 224
# Small, two different sides, and still two pixels after five halvings.
_FREE_SIDES = (64, 96)


def image_shape(model: nn.Module, batches: Sequence[Mapping[str, Any]] = ()) -> ImageShape | None:
    """The one shape of image that a model is used with; None where it may be any.

    Args:
        model: its config may say a size.
        batches: what it is called with; the first image's shape counts more than the config's,
            since convolutions take other sizes than those they were configured with.
    """
    for batch in batches:
        if IMAGE_INPUT in batch:
            channels, height, width = batch[IMAGE_INPUT].shape[1:]
            return int(channels), int(height), int(width)
    side = getattr(getattr(model, "config", None), "image_size", None)
    if side is None:
        return None
    height, width = (side, side) if isinstance(side, int) else side
    return _channels(model), int(height), int(width)


def example_images(
    model: nn.Module, batch: int, shape: ImageShape | None, generator: torch.Generator
) -> Tensor:
    """Random images, [batch, channels, height, width].

    Args:
        model: its config says the channels where no shape is given.
        batch: how many.
        shape: of one; None takes the usual size.
        generator: draws them.
    """
    shape = shape or (_channels(model), _USUAL_SIDE, _USUAL_SIDE)
    return torch.randn((batch, *shape), generator=generator)


def checked_shape(model: nn.Module, shape: ImageShape | None, turn: int) -> ImageShape:
    """The shape to try a graph with: the given one, or another at every turn where any will do."""
    sides = _FREE_SIDES if turn % 2 == 0 else _FREE_SIDES[::-1]
    return shape or (_channels(model), *sides)


def _channels(model: nn.Module) -> int:
    return int(getattr(getattr(model, "config", None), "num_channels", 3))
