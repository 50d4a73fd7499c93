"""Images of one size as a column of a data set: uint8 arrays, read back without a Python loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Array2D, Array3D, ClassLabel, Dataset
from datasets.features.features import Array2DExtensionType, Array3DExtensionType
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
ARRAYS = (Array2D, Array3D)
# Rows read at a time: a few megabytes of small images.
_ARROW_ROWS = 4096


def array_dataset(images: Pixels, labels: Sequence[Any], names: list[str] | None) -> Dataset:
    """A data set of images and labels.

    Args:
        images: uint8 [rows, height, width] or [rows, height, width, channels].
        labels: one a row.
        names: what the labels are called where they are class numbers; None leaves them values.
    """
    shape = images.shape[1:]
    kind: Any = Array2DExtensionType if len(shape) == 2 else Array3DExtensionType
    column = pa.ExtensionArray.from_storage(kind(shape, "uint8"), _nested(images))
    data = Dataset(pa.table({"image": column, "label": pa.array(labels)}))
    return data.cast_column("label", ClassLabel(names=names)) if names else data


def _nested(images: Pixels) -> Any:
    """The array as lists of lists, which is how Arrow keeps it."""
    nested: Any = pa.array(np.ascontiguousarray(images).reshape(-1))
    length = images.size
    for size in reversed(images.shape[1:]):
        offsets = np.arange(0, length + 1, size, dtype=np.int64)
        nested = pa.LargeListArray.from_arrays(pa.array(offsets), nested)
        length //= size
    storage = pa.list_(pa.uint8())
    for _ in images.shape[2:]:
        storage = pa.list_(storage)
    return nested.cast(storage)


def is_array_column(rows: Dataset, column: str) -> bool:
    """Whether a column holds uint8 arrays of one size, as `array_dataset` makes them."""
    feature = rows.features[column]
    return isinstance(feature, ARRAYS) and feature.dtype == "uint8" and None not in feature.shape


def array_chunks(rows: Dataset, column: str) -> Iterator[Pixels]:
    """The images of a column, some thousand at a time: uint8 [rows, height, width(, channels)]."""
    feature = rows.features[column]
    plain = rows.select_columns(column).with_format("arrow")
    for start in range(0, len(rows), _ARROW_ROWS):
        values: Any = plain[start : start + _ARROW_ROWS][column].combine_chunks()
        values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
        values = values.storage
        for _ in feature.shape:
            values = values.flatten()
        yield values.to_numpy(zero_copy_only=False).reshape(-1, *feature.shape)


def image_feature(feature: Any) -> bool:
    """Whether a column's type can hold images."""
    kinds = (datasets.Image, *ARRAYS, datasets.List, datasets.LargeList)
    return isinstance(feature, kinds) or feature == datasets.Value("binary")
