"""Images -> the array that a network reads, with numpy and Pillow alone.

``example.py`` of a deployable folder contains the source of `eight_bits`, `open_upright` and
`make_pixels` without type annotations, so they use only numpy and Pillow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hfcompress.data.levels import eight_bits
from hfcompress.quantization.manifest import ImageSettings

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from transformers import BaseImageProcessor

Pixels = NDArray[np.float32]
Resize = int | list[int] | None
Crop = list[int] | None


def open_upright(path: str | Path) -> PillowImage:
    """Open an image file as a viewer shows it: upright, transparent parts on white."""
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode[0] in "IF":
        image = Image.fromarray(eight_bits(np.asarray(image)))
    if "A" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image


def make_pixels(images: Sequence[PillowImage], settings: ImageSettings) -> Pixels:
    """Images -> float32 [images, channels, height, width]; settings: "image" of hfcompress.json."""
    arrays = []
    for image in images:
        image = image.convert("L" if settings["channels"] == 1 else "RGB")
        size = settings["resize"]
        if isinstance(size, int):  # of the shorter side
            short = min(image.size)
            size = [size if side == short else int(size * side / short) for side in image.size]
        if size is not None and list(image.size) != list(size):
            width, height = size
            image = image.resize((width, height), settings["resample"])
        if settings["crop"] is not None:
            width, height = settings["crop"]
            left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
            image = image.crop((left, top, left + width, top + height))
        array = np.asarray(image, np.float32)
        arrays.append(array.reshape(*array.shape[:2], settings["channels"]))
    scale = np.asarray(settings["scale"], np.float32)
    shift = np.asarray(settings["shift"], np.float32)
    return np.ascontiguousarray((np.stack(arrays) * scale + shift).transpose(0, 3, 1, 2))


def image_settings(processor: BaseImageProcessor) -> ImageSettings | None:
    """Find the settings with which `make_pixels` does what an image processor does.

    Black and white images give the processor's scale and shift; its resizing and cropping are
    found by trying the usual ones on images of noise.

    Args:
        processor: a transformers image processor (its Pillow class).

    Returns:
        Plain data; None if no setting reproduces the processor.
    """
    from PIL import Image

    mean = getattr(processor, "image_mean", None)
    channels = len(mean) if isinstance(mean, (list, tuple)) else 3
    mode = "L" if channels == 1 else "RGB"
    noise = np.random.default_rng(0)
    samples = [
        Image.fromarray(noise.integers(0, 256, (*size, 3), np.uint8)).convert(mode)
        for size in ((300, 400), (310, 230))
    ]
    try:
        black, white = (
            _process(processor, Image.new(mode, (300, 300), colour)).mean((1, 2))
            for colour in ("black", "white")
        )
        expected = [_process(processor, sample) for sample in samples]
    except (ValueError, TypeError, AttributeError):
        return None
    for resize, crop in _candidates(processor, expected[0].shape[1:]):
        settings: ImageSettings = {
            "channels": channels,
            "resample": int(getattr(processor, "resample", None) or 0),
            "scale": [float(number) for number in (white - black) / 255],
            "shift": [float(number) for number in black],
            "resize": resize,
            "crop": crop,
        }
        if _all_close([make_pixels([sample], settings)[0] for sample in samples], expected):
            return settings
    return None


def _process(processor: BaseImageProcessor, image: PillowImage) -> Pixels:
    return np.asarray(processor([image], return_tensors="np")["pixel_values"][0])


def _all_close(found: Sequence[Pixels], expected: Sequence[Pixels]) -> bool:
    return all(
        a.shape == b.shape and np.allclose(a, b, atol=1e-3)
        for a, b in zip(found, expected, strict=True)
    )


def _candidates(
    processor: BaseImageProcessor, shape: tuple[int, ...]
) -> Iterator[tuple[Resize, Crop]]:
    """Resizes and crops that a processor may use, given the [height, width] of its output."""
    output = [int(shape[1]), int(shape[0])]
    yield output, None
    yield None, None
    size = getattr(processor, "size", None) or {}
    if size.get("height") and size.get("width"):
        yield [int(size["width"]), int(size["height"])], output
    if short := size.get("shortest_edge"):
        yield int(short), output
        yield int(short), None
        yield int(short / (getattr(processor, "crop_pct", None) or 1)), output
