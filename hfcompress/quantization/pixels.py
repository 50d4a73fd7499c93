"""Images -> what a network reads, with numpy and Pillow alone.

``example.py`` of a deployable folder carries these functions as they stand here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


def open_upright(path):  # type: ignore[no-untyped-def]  # plain, as people read it in example.py
    """An image file as a viewer shows it: upright, transparent parts on white."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image


def make_pixels(images, settings):  # type: ignore[no-untyped-def]
    """Images -> float32 [images, channels, height, width]; settings: "image" of hfcompress.json."""
    arrays = []
    for image in images:
        image = image.convert("L" if settings["channels"] == 1 else "RGB")
        size = settings["resize"]
        if isinstance(size, int):  # of the shorter side
            short = min(image.size)
            size = [size if side == short else int(size * side / short) for side in image.size]
        if size is not None and list(image.size) != list(size):
            image = image.resize(tuple(size), settings["resample"])
        if settings["crop"] is not None:
            width, height = settings["crop"]
            left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
            image = image.crop((left, top, left + width, top + height))
        array = np.asarray(image, np.float32)
        arrays.append(array.reshape(*array.shape[:2], settings["channels"]))
    scale, shift = (np.asarray(settings[name], np.float32) for name in ("scale", "shift"))
    pixels = (np.stack(arrays) * scale + shift).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels)


def image_settings(processor: Any) -> dict[str, Any] | None:
    """What `make_pixels` must be told to do what an image processor does.

    What a processor makes of black and of white shows how it scales and shifts values; its way of
    resizing is tried on pictures of noise.

    Args:
        processor: a transformers image processor (its Pillow class).

    Returns:
        Plain data; None where the processor does something else.
    """
    mean = getattr(processor, "image_mean", None)
    channels = len(mean) if isinstance(mean, (list, tuple)) else 3
    mode = "L" if channels == 1 else "RGB"
    noise = np.random.default_rng(0)
    pictures = [
        Image.fromarray(noise.integers(0, 256, (*size, 3), np.uint8)).convert(mode)
        for size in ((300, 400), (310, 230))
    ]
    try:
        values = [
            _processed(processor, [Image.new(mode, (300, 300), colour)])[0].mean((1, 2))
            for colour in ("black", "white")
        ]
        expected = [_processed(processor, [picture])[0] for picture in pictures]
    except (ValueError, TypeError, AttributeError):
        return None
    common = {
        "channels": channels,
        "resample": int(getattr(processor, "resample", None) or 0),
        "scale": [float(number) for number in (values[1] - values[0]) / 255],
        "shift": [float(number) for number in values[0]],
    }
    for resize, crop in _ways(processor, expected[0].shape[1:]):
        settings = {**common, "resize": resize, "crop": crop}
        found = [make_pixels([picture], settings)[0] for picture in pictures]  # type: ignore[no-untyped-call]
        if _equal(found, expected):
            return settings
    return None


def _processed(processor: Any, images: Sequence[Any]) -> NDArray[Any]:
    return np.asarray(processor(list(images), return_tensors="np")["pixel_values"])


def _equal(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> bool:
    return all(
        a.shape == b.shape and np.allclose(a, b, atol=1e-3)
        for a, b in zip(found, expected, strict=True)
    )


def _ways(processor: Any, shape: tuple[int, ...]) -> list[tuple[Any, Any]]:
    """Ways to resize and crop that may be the processor's, for images of the shape it made."""
    made = [int(shape[1]), int(shape[0])]
    size: Mapping[str, Any] = getattr(processor, "size", None) or {}
    short = size.get("shortest_edge")
    ways: list[tuple[Any, Any]] = [(made, None), (None, None)]
    if size.get("height") and size.get("width"):
        ways.append(([int(size["width"]), int(size["height"])], made))
    if short:
        share = getattr(processor, "crop_pct", None) or 1
        ways += [(int(short), made), (int(short), None), (int(short / share), made)]
    return ways
