"""Augmentation of images, a batch of bytes at a time: other views of the same thing.

Each image of a batch is changed on its own, by torch's own chance, so that a seed repeats it.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from hfcompress.config import Config

# Random erasing (1708.04896): share of the image that is hidden, and its sides' ratio.
_ERASED_SHARE = (0.02, 0.25)
_ERASED_RATIO = (0.4, 2.5)


class ImageAugmentation(Config):
    """Random views of training images; a recipe's ``image_augmentation``.

    Raises:
        ConfigError: an unknown field, a value out of range, or nothing to do.
    """

    flip: float = Field(
        0.0, ge=0, le=1, strict=False, description="probability of a left-right mirror image"
    )
    shift: int = Field(
        0, ge=0, description="pixels by which an image moves at most, each way; black comes in"
    )
    erase: float = Field(
        0.0, ge=0, le=1, strict=False,
        description="probability that a random rectangle is hidden (random erasing, 1708.04896)",
    )  # fmt: skip

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not (self.flip or self.shift or self.erase):
            raise ValueError("nothing is set; give flip, shift or erase, or leave it out")
        return self


def augment_images(images: Tensor, config: ImageAugmentation) -> Tensor:
    """Other views of a batch.

    Args:
        images: [images, channels, height, width]; bytes, or floats whose black is 0.
        config: what is done to them.

    Returns:
        The changed images, of the same shape and type; the argument is left as it is.
    """
    if config.flip:
        mirrored = torch.rand(len(images), 1, 1, 1) < config.flip
        images = torch.where(mirrored, images.flip(-1), images)
    if config.shift:
        images = _shifted(images, config.shift)
    if config.erase:
        images = _erased(images, config.erase)
    return images


def _shifted(images: Tensor, most: int) -> Tensor:
    """Each image moved by up to ``most`` pixels: a random crop of the image with a black frame."""
    count, _, height, width = images.shape
    framed = functional.pad(images, (most, most, most, most))
    down, right = torch.randint(0, 2 * most + 1, (2, count))
    rows = (down[:, None] + torch.arange(height))[:, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, :]
    chosen = framed.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows, columns]
    return chosen.permute(0, 3, 1, 2)


def _erased(images: Tensor, probability: float) -> Tensor:
    """A rectangle of some images filled with the image's mean."""
    count, _, height, width = images.shape
    share = torch.empty(count).uniform_(*_ERASED_SHARE)
    ratio = torch.empty(count).uniform_(*(torch.tensor(_ERASED_RATIO).log().tolist())).exp()
    tall = (share * ratio).sqrt().clamp(max=1) * height
    wide = (share / ratio).sqrt().clamp(max=1) * width
    top, left = torch.rand(count) * (height - tall), torch.rand(count) * (width - wide)
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    inside_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    hidden = inside_rows[:, :, None] & inside_columns[:, None, :]
    hidden &= torch.rand(count, 1, 1) < probability
    mean = images.float().mean(dim=(2, 3), keepdim=True).to(images.dtype)
    return torch.where(hidden[:, None], mean, images)
