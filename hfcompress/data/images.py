"""Image files and arrays -> 8-bit grey or RGB images, as a viewer shows them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from hfcompress.config import Config
from hfcompress.data.levels import eight_bits
from hfcompress.errors import DataError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""Orientations that swap height and width."""
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of more than 8 bits a value, all of them grey."""


_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, TypeError, MemoryError)


class UnreadableImageError(DataError):
    """An image that cannot be read.

    Attributes:
        problem: why not.
        name: its file or row.
    """

    def __init__(self, problem: str, name: str) -> None:
        super().__init__(f"data: {problem}: {name}")
        self.problem, self.name = problem, name


def open_image(value: object, where: str, grey: bool = False) -> Image:
    """One image, upright, without transparency, 8 bits a value.

    Transparent pixels show a white ground. Values of more than 8 bits are scaled by
    `eight_bits`. Of an animation the first frame.

    Args:
        value: ``{"bytes": ..., "path": ...}`` as ``datasets`` keeps undecoded images, bytes, an
            array of height x width (x channels), or a Pillow image.
        where: the row, for messages; a file's own name goes before it.
        grey: one channel, not three.

    Returns:
        An image of mode ``L`` or ``RGB``.

    Raises:
        UnreadableImageError: no image, or one that is cut short; the sentence names the file.
    """
    try:
        return upright(_decode(value), grey)
    except (*_PILLOW_ERRORS, _bomb_error()) as error:
        raise UnreadableImageError(_problem(error), _named(value, where)) from None


def open_mask(value: object, where: str) -> NDArray[np.integer[Any]]:
    """One mask: the number of each pixel, [height, width]; of a palette the place in it.

    Args:
        value: as `open_image` takes it, or lists of numbers.
        where: the row, for messages; a file's own name goes before it.

    Raises:
        UnreadableImageError: no image, one that is cut short, or one of colours.
    """
    try:
        whole = isinstance(value, (list, np.ndarray))
        array = np.asarray(value if whole else _decode(value))
    except (*_PILLOW_ERRORS, _bomb_error()) as error:
        raise UnreadableImageError(_problem(error), _named(value, where)) from None
    if array.ndim == 3 and array.shape[-1] and (array == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "biu" or not array.size:
        raise UnreadableImageError(
            "a mask has one class number for each pixel, and this is an image of colours",
            _named(value, where),
        )
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def image_size(value: object, where: str) -> tuple[int, int]:
    """Height and width of an image as `open_image` gives it, mostly without decoding it.

    Args:
        value, where: as there.

    Raises:
        UnreadableImageError: as there.
    """
    from PIL import Image

    try:
        if isinstance(value, dict) and {"bytes", "path"} & value.keys():
            stored = value.get("bytes")
            with Image.open(io.BytesIO(stored) if stored else value["path"]) as opened:
                turned = opened.getexif().get(_ORIENTATION, 1) in _TURNED
                return (opened.width, opened.height) if turned else (opened.height, opened.width)
    except (*_PILLOW_ERRORS, _bomb_error()) as error:
        raise UnreadableImageError(_problem(error), _named(value, where)) from None
    image = open_image(value, where)
    return image.height, image.width


def _named(value: object, where: str) -> str:
    """A file's own name before the row."""
    if isinstance(value, dict) and value.get("path"):
        return str(value["path"]) if Path(value["path"]).is_file() else f"{value['path']}, {where}"
    return where


def _bomb_error() -> type[Exception]:
    from PIL import Image

    return Image.DecompressionBombError


def _decode(value: object) -> Image:
    from PIL import Image

    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value.get("bytes") or Path(value["path"]).read_bytes()
    if isinstance(value, bytes):
        image = Image.open(io.BytesIO(value))
        image.load()  # decodes all of it: a cut file shows now
        return image
    if isinstance(value, Image.Image):
        value.load()
        return value
    if value is None:
        raise ValueError("there is no image")
    return from_array(np.asarray(value))


def _problem(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "Pillow cannot read this as an image"
    if isinstance(error, FileNotFoundError):
        return "there is no image file"
    if "truncated" in str(error) or isinstance(error, (SyntaxError, EOFError)):
        return f"the image is cut short or damaged ({first_line(error)})"
    return f"the image cannot be read ({first_line(error)})"


def from_array(array: NDArray[np.generic]) -> Image:
    """An image of an array: height x width, or with 1 to 4 channels first or last.

    Raises:
        ValueError: an array of another shape.
    """
    from PIL import Image

    if array.ndim == 3 and array.shape[-1] > 4 and array.shape[0] <= 4:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] > 4) or not array.size:
        raise ValueError(f"an array of shape {array.shape} is not an image")
    return Image.fromarray(eight_bits(array))


def upright(image: Image, grey: bool) -> Image:
    """The image turned by its EXIF orientation and put on white, in mode ``L`` or ``RGB``."""
    from PIL import Image, ImageOps

    if image.getexif().get(_ORIENTATION, 1) != 1:  # otherwise it would copy the image
        image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP:
        image = Image.fromarray(eight_bits(np.asarray(image)))
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        seen = image.convert("RGBA")
        ground = Image.new("RGBA", seen.size, "white")
        image = Image.alpha_composite(ground, seen).convert("RGB")
    wanted = "L" if grey else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


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
    """The batch with random flips, shifts and erased rectangles.

    Args:
        images: [images, channels, height, width]; bytes, or floats whose black is 0.
        config: how likely each change is.

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
