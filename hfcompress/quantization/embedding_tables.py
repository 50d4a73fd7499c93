"""Embedding tables as integers, the same integers for every engine.

With 8 bits a row has one scale. With 4 bits each group of 32 columns has one if 32 divides the
row, else the whole row has one. Scales are fp16: half a percent of the bytes of an 8-bit table of
384 columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hfcompress.errors import ModelError

GROUP = 32
"""Columns that share a scale with 4 bits."""
# With 4 bits, candidates for the integer (before rounding) of a group's extreme value. Negative,
# because -8..7 reaches further there; below -8 the extreme is clipped in favour of the others.
_ENDS = (-7.0, -7.5, -8.0, -8.75, -9.5)
_ROWS = 4096
# Larger values need a scale beyond fp16's range.
_LARGEST = 400_000.0

Values = NDArray[np.int8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class QuantizedTable:
    """A table [rows, columns].

    Attributes:
        values: int8 [rows, columns], one integer in a byte for 4 bits, too.
        scales: fp16 [rows, groups]; a negative scale flips the signs of its group.
        bits: 4 or 8.
    """

    values: Values
    scales: NDArray[np.float16]
    bits: int

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return int(self.values.shape[1] // self.scales.shape[1])

    def packed(self, shift: int = 0) -> NDArray[np.uint8]:
        """Return the integers packed: two 4-bit integers in a byte, the first in the lower half.

        Args:
            shift: added to each integer first; 8 makes 4-bit integers unsigned.
        """
        numbers = (self.values.astype(np.int16) + shift).astype(np.uint8).reshape(-1)
        if self.bits == 8:
            return numbers
        numbers = np.pad(numbers & 15, (0, len(numbers) % 2))
        return np.asarray(numbers[0::2] | (numbers[1::2] << 4), np.uint8)

    def dequantized(self) -> Floats:
        """Return the table in fp32, [rows, columns]."""
        scales = np.repeat(self.scales.astype(np.float32), self.group, axis=1)
        found: Floats = self.values * scales
        return found


def quantize_table(weight: Floats, bits: int) -> QuantizedTable:
    """Quantize a table.

    With 8 bits the error of a value is at most half a step. With 4 bits each group takes the scale
    of least squared error among five; for one of them the error is at most half a step.

    Args:
        weight: [rows, columns].
        bits: 4 or 8; a table with an odd number of columns takes 8.

    Raises:
        ModelError: it contains NaN, or numbers that need scales beyond fp16's range.
    """
    if not np.abs(weight).max(initial=0) < _LARGEST:
        raise ModelError(
            f"an embedding table contains NaN or numbers above {_LARGEST:,.0f}; "
            f"load or train the model again"
        )
    rows, columns = weight.shape
    bits = 8 if columns % 2 else bits
    group = GROUP if bits == 4 and columns % GROUP == 0 else columns
    values = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, columns // group), np.float16)
    for part in _parts(rows):  # the search for scales needs several times the memory of a part
        found, steps = quantize_groups(weight[part].reshape(-1, group).astype(np.float32), bits)
        values[part], scales[part] = found.reshape(-1, columns), steps.reshape(-1, columns // group)
    return QuantizedTable(values, scales, bits)


def halved(numbers: Floats) -> NDArray[np.float16] | None:
    """Return a constant in fp16, or None if a value changes by more than a thousandth of itself
    and a millionth of the largest value.
    """
    largest = np.abs(numbers).max(initial=0)
    if not largest < np.finfo(np.float16).max:
        return None
    found = numbers.astype(np.float16)
    error = np.abs(found.astype(np.float32) - numbers)
    close = (error <= 1e-3 * np.abs(numbers)) | (error <= 1e-6 * largest)
    return found if close.all() else None


def _parts(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _ROWS):
        yield slice(start, min(start + _ROWS, rows))


def quantize_groups(groups: Floats, bits: int) -> tuple[Values, NDArray[np.float16]]:
    """Return the integers of some groups of numbers, and the scale of each group.

    Args:
        groups: [groups, numbers].
        bits: 4 or 8.
    """
    if bits == 8:
        steps = _as_scales(np.abs(groups).max(axis=1) / 127)
        return _rounded(groups, steps, -127, 127), steps
    place = np.abs(groups).argmax(axis=1)[:, None]
    extreme = np.take_along_axis(groups, place, axis=1)[:, 0]
    best = np.full(len(groups), np.inf, np.float32)
    values, scales = np.zeros(groups.shape, np.int8), np.ones(len(groups), np.float16)
    for end in _ENDS:
        steps = _as_scales(extreme / end)
        found = _rounded(groups, steps, -8, 7)
        error = np.square(found * steps.astype(np.float32)[:, None] - groups).sum(axis=1)
        better = error < best
        best[better], values[better], scales[better] = error[better], found[better], steps[better]
    return values, scales


def _as_scales(steps: Floats) -> NDArray[np.float16]:
    """Round to fp16; 0 and denormal numbers become fp16's smallest normal number."""
    tiny = np.finfo(np.float16).tiny
    scales = steps.astype(np.float16)
    small = np.abs(scales) < tiny
    scales[small] = np.where(steps[small] < 0, -tiny, tiny)
    return scales


def _rounded(groups: Floats, steps: NDArray[np.float16], low: int, high: int) -> Values:
    quotients = groups / steps.astype(np.float32)[:, None]
    rounded: Values = np.clip(np.rint(quotients), low, high).astype(np.int8)
    return rounded
