"""Image values of more than 8 bits -> bytes, by the one rule of training and deployment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def eight_bits(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale image values of any type to bytes.

    White is the largest value of the smallest usual depth (8, 10, 12, 14 or 16 bits) that holds
    every value, 1 for floats of at most 1. Multiples of 257 are bytes that were scaled to 16
    bits. Beyond 16 bits, or with negative values, the range of the image itself is used.
    Whole numbers are rounded down, so that only the largest one is white.
    """
    if array.dtype == np.uint8:
        return array.astype(np.uint8)
    values = array.astype(np.float64) * (255 if array.dtype == bool else 1)
    if not np.isfinite(values).all():
        raise ValueError("some values are not finite")
    black, white = min(0.0, float(values.min(initial=0))), float(values.max(initial=0))
    if black == 0:
        depths = [1] if array.dtype.kind == "f" else []
        scaled = array.dtype.kind in "ui" and white > 255 and not (values % 257).any()
        depths += [255, 65535] if scaled else [255, 1023, 4095, 16383, 65535]
        white = next((depth for depth in depths if white <= depth), white)
        if array.dtype.kind in "ui" and white in depths:
            return (array.astype(np.int64) * 255 // int(white)).astype(np.uint8)
    scale = 255 / max(white - black, 1e-30)
    return np.rint((values - black) * scale).clip(0, 255).astype(np.uint8)
