"""Tables of pixels: a label and one column for each pixel, as scikit-learn keeps its digits."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from fsspec.core import open as open_any  # understands the compressions that datasets does

from hfcompress.config import nearest
from hfcompress.data.arrays import array_dataset
from hfcompress.data.config import LABEL_COLUMNS
from hfcompress.errors import DataError

# Fewer numbers in a row are measurements, not pixels.
_SMALLEST = 16


def pixel_table(file: Path) -> bool:
    """Whether each row is a label and the pixels of a square image, grey or of three colours."""
    with open_any(str(file), "rt", encoding="utf-8", compression="infer") as stream:
        reader = csv.reader(stream)
        first, second = next(reader, []), next(reader, [])
    row = second or first
    numeric = all(_is_number(value) for value in row)
    return numeric and len(row) > _SMALLEST and _side(len(row) - 1) is not None


def read_pixel_table(
    file: Path, spec: str, label: str | None
) -> tuple[DatasetDict, tuple[str, ...]]:
    """The images and labels of such a table, as one split.

    The label stands in the column of that name; without a header line in the last one. Values
    are bytes; where none is above 16, or above 1, that is taken for white.

    Args:
        file: comma separated, compressed or not.
        spec: what the user wrote, for messages.
        label: the label's column where it has an unusual name.

    Raises:
        DataError: no such label column, or a value that is no number.
    """
    with open_any(str(file), "rt", encoding="utf-8", compression="infer") as stream:
        rows = list(csv.reader(stream))
    header = None if all(_is_number(value) for value in rows[0]) else rows.pop(0)
    place = _label_place(header, label)
    try:
        table = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise DataError(f"data: {spec!r} is no table of pixels: {error}") from None
    labels = table[:, place].astype(np.int64)
    values = np.delete(table, place % table.shape[1], axis=1)
    side, channels = _side(values.shape[1]) or (0, 0)
    white = next(limit for limit in (1, 16, max(255.0, values.max())) if values.max() <= limit)
    shape = (-1, side, side) if channels == 1 else (-1, side, side, channels)
    pixels = np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8).reshape(shape)
    notes = [] if header else [f"{file.name} has no header line; its last column is the label"]
    if white != 255:
        notes.append(f"{file.name} holds values up to {white:g}, which is taken for white")
    return DatasetDict(train=array_dataset(pixels, labels.tolist(), None)), tuple(notes)


def _side(pixels: int) -> tuple[int, int] | None:
    """Side and channels of the square image of so many values."""
    for channels in (1, 3):
        side = math.isqrt(pixels // channels)
        if side * side * channels == pixels:
            return side, channels
    return None


def _label_place(header: list[str] | None, label: str | None) -> int:
    if header is None:
        return -1
    for name in (label,) if label else LABEL_COLUMNS:
        if name in header:
            return header.index(str(name))
    hint = nearest(str(label), header) if label else f"; none of {', '.join(LABEL_COLUMNS)} is one"
    raise DataError(f"data.label: there is no column {label or 'label'!r}{hint}")


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
