"""The size of images that a classifier reads and an exported graph is made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

IMAGE_INPUT = "pixel_values"
ImageShape = tuple[int, int, int]
"""Channels, height and width."""

# The most frequent size of image processors.
_USUAL_SIDE = 224
# Small and different from each other, with two pixels left after five strides of two.
_FREE_SIDES = (64, 96)


def image_shape(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor | NDArray[np.generic]]] = ()
) -> ImageShape | None:
    """Return the shape of the images that a model is used with; None if it takes any.

    Args:
        model: its config may name a size.
        batches: inputs of the model; the shape of their first image takes precedence over the
            config's, because convolutional networks also take other sizes.
    """
    for batch in batches:
        if IMAGE_INPUT in batch and len(batch[IMAGE_INPUT].shape) == 4:
            channels, height, width = batch[IMAGE_INPUT].shape[1:]
            return int(channels), int(height), int(width)
    side = _of_images(model, "image_size")
    if side is None:
        return None
    height, width = (side, side) if isinstance(side, int) else side
    return _channels(model), int(height), int(width)


def example_images(
    model: nn.Module, batch: int, shape: ImageShape | None, generator: torch.Generator
) -> Tensor:
    """Return random images, [batch, channels, height, width].

    Args:
        model: its config names the channels if no shape is given.
        batch: number of images.
        shape: of one image; None takes 224 x 224.
        generator: for sampling.
    """
    shape = shape or (_channels(model), _USUAL_SIDE, _USUAL_SIDE)
    return torch.randn((batch, *shape), generator=generator)


def checked_shape(model: nn.Module, shape: ImageShape | None, turn: int) -> ImageShape:
    """Return the shape to check a graph with: the given one, or alternating sizes if it is None."""
    sides = _FREE_SIDES if turn % 2 == 0 else _FREE_SIDES[::-1]
    return shape or (_channels(model), *sides)


def _channels(model: nn.Module) -> int:
    return int(_of_images(model, "num_channels") or 3)


def _of_images(model: nn.Module, name: str) -> Any:
    """A field of the config, or of the config of its image tower; None without either."""
    config = getattr(model, "config", None)
    found = getattr(config, name, None)
    return getattr(getattr(config, "vision_config", None), name, None) if found is None else found
