"""Images in tables of pixels and in IDX files, the format of MNIST.

An IDX file (``train-images-idx3-ubyte.gz`` beside its labels) holds two zero bytes, a type byte
(8: unsigned byte), the number of dimensions, each size as a big-endian 32-bit number, then the
values.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from fsspec.core import open as open_any  # understands the compressions that datasets does
from numpy.typing import NDArray

from hfcompress.config import nearest
from hfcompress.data.config import LABEL_COLUMNS
from hfcompress.data.image_batches import array_dataset
from hfcompress.errors import DataError

_IMAGES = re.compile(r"(?P<side>.*?)-?images?[-.]idx(?P<dimensions>[34])-ubyte(\.gz)?")
_SIDES = {"train": "train", "t10k": "test", "test": "test", "valid": "validation",
          "validation": "validation", "val": "validation"}  # fmt: skip
# Data sets in this format whose classes have names, by a word of their folder's name.
_CLASSES = {
    "fashion": ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                "Sneaker", "Bag", "Ankle boot"],
    "kuzushiji": ["お", "き", "す", "つ", "な", "は", "ま", "や", "れ", "を"],
}  # fmt: skip
_UNSIGNED_BYTE = 8


def is_idx(path: Path) -> bool:
    """Whether a folder holds IDX files of images, or a file is one."""
    return bool(_image_files(path))


def read_idx(path: Path, spec: str) -> DatasetDict:
    """The images and labels of each side.

    Args:
        path: the folder, or the file of one side's images.
        spec: what the user wrote, for messages.

    Raises:
        DataError: labels that are missing or too few, or a file that is cut short or no IDX.
    """
    names = _class_names(path)
    sides = {side: _read_side(file, spec, names) for side, file in _image_files(path).items()}
    return DatasetDict(sides)


def _image_files(path: Path) -> dict[str, Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found: dict[str, Path] = {}
    for file in files:
        match = _IMAGES.fullmatch(file.name)
        if match:
            side = match["side"].lower()
            found.setdefault(_SIDES.get(side, side or "train"), file)
    return found


def _class_names(path: Path) -> list[str] | None:
    folder = path if path.is_dir() else path.parent
    return next((_CLASSES[word] for word in _CLASSES if word in folder.name.lower()), None)


def _read_side(images: Path, spec: str, names: list[str] | None) -> Dataset:
    labels = _labels_of(images, spec)
    pixels, numbers = read_array(images), read_array(labels)
    if len(pixels) != len(numbers):
        raise DataError(
            f"data: {images.name} has {len(pixels):,} images and {labels.name} "
            f"{len(numbers):,} labels; give files that belong together"
        )
    classes = int(numbers.max(initial=0)) + 1
    fitting = names if names and classes <= len(names) else [str(i) for i in range(classes)]
    return array_dataset(pixels, numbers.astype(np.int64).tolist(), fitting)


def _labels_of(images: Path, spec: str) -> Path:
    base = images.name.replace("images", "labels").replace("image", "label")
    base = re.sub(r"idx[34]", "idx1", base).removesuffix(".gz")
    for name in (f"{base}.gz", base):
        if (images.parent / name).is_file():
            return images.parent / name
    raise DataError(f"data: {spec!r} has {images.name} without its labels, {base}")


def read_array(file: Path) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes, packed by gzip or not.

    Raises:
        DataError: it is cut short, or no such file.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            data = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data: {file.name} is cut short or damaged ({error})") from None
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError(
            f"data: {file.name} is not an IDX file; it does not start with two zero bytes"
        )
    kind, dimensions = data[2], data[3]
    if kind != _UNSIGNED_BYTE:
        raise DataError(f"data: {file.name} has values of type {kind}; give one of bytes, type 8")
    head = 4 + 4 * dimensions
    if len(data) < head:
        raise DataError(f"data: {file.name} is cut short")
    shape = struct.unpack(f">{dimensions}I", data[4:head])
    if len(data) - head != np.prod(shape, dtype=np.int64):
        raise DataError(
            f"data: {file.name} is cut short or damaged: it says {'x'.join(map(str, shape))} and "
            f"holds {len(data) - head:,} bytes"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


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

    The label is in the column of that name, or in the last one without a header line. Values
    are bytes; where none is above 16, or above 1, that is taken for white.

    Args:
        file: comma separated, compressed or not.
        spec: what the user wrote, for messages.
        label: the label's column where it has an unusual name.

    Raises:
        DataError: no such label column, or a value that is not a number.
    """
    with open_any(str(file), "rt", encoding="utf-8", compression="infer") as stream:
        rows = list(csv.reader(stream))
    header = None if all(_is_number(value) for value in rows[0]) else rows.pop(0)
    place = _label_place(header, label)
    try:
        table = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise DataError(f"data: {spec!r} is not a table of pixels: {error}") from None
    labels = table[:, place].astype(np.int64)
    values = np.delete(table, place % table.shape[1], axis=1)
    side, channels = _side(values.shape[1]) or (0, 0)
    white = next(limit for limit in (1, 16, max(255.0, values.max())) if values.max() <= limit)
    shape = (-1, side, side) if channels == 1 else (-1, side, side, channels)
    pixels = np.rint(values * (255 / white)).clip(0, 255).astype(np.uint8).reshape(shape)
    notes = [] if header else [f"{file.name} has no header line; its last column is the label"]
    if white != 255:
        notes.append(f"{file.name} has values up to {white:g}, which is read as white")
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
