"""The files of a teacher cache: arrays by row or by token, and ``meta.json`` that describes them.

::

    KEY/
        meta.json       what the arrays are and whose outputs they hold
        offsets.npy     int64 (rows + 1,): where each row's tokens begin in the arrays by token
        logits.npy      float32 (rows, ...) or (tokens of all rows, ...)
        hidden_3.npy    float16 (tokens of all rows, width): hidden states after layer 3

The arrays are memory-mapped: what is not looked up is not read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcompress.errors import DataError
from hfcompress.files import atomic_write

Array = NDArray[Any]
FORMAT = 1


@dataclass(frozen=True)
class ArraySpec:
    """One array: its file's name without the suffix, and what it holds.

    Attributes:
        name: ``"logits"`` or ``"hidden_N"``.
        dtype: of numpy.
        shape: of one row, or of one token.
        by_token: whether there is one entry for each token, or for each row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    by_token: bool


@dataclass(frozen=True)
class Meta:
    """What a cache is of.

    Attributes:
        teacher: hash of the teacher's weights and config.
        data: hash of the rows as the teacher read them.
        preprocessing: what else decides what the teacher said, as text.
        rows: how many.
        task: what the logits mean.
        arrays: what is kept of each.
        format: of these files.
    """

    teacher: str
    data: str
    preprocessing: str
    rows: int
    task: str
    arrays: tuple[ArraySpec, ...]
    format: int = FORMAT

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_meta(folder: Path) -> Meta:
    """Read ``meta.json``.

    Raises:
        DataError: it is not there, or not of this format.
    """
    try:
        data = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = tuple(
            ArraySpec(**{**array, "shape": tuple(array["shape"])}) for array in data.pop("arrays")
        )
        meta = Meta(**data, arrays=arrays)
    except (OSError, ValueError, TypeError, KeyError):
        meta = None
    if meta is None or meta.format != FORMAT:
        raise DataError(
            f"{folder} is no teacher cache of this version (its meta.json cannot be read); "
            f"delete the folder and build the cache again"
        )
    return meta


def create_arrays(
    folder: Path, arrays: Sequence[ArraySpec], offsets: NDArray[np.int64]
) -> dict[str, Array]:
    """Make the array files, or open those of a build that was cut."""
    opened: dict[str, Array] = {}
    for spec in arrays:
        path = folder / f"{spec.name}.npy"
        shape = _shape(spec, offsets)
        mode: Any = "r+" if path.is_file() else "w+"
        opened[spec.name] = np.lib.format.open_memmap(path, mode, np.dtype(spec.dtype), shape)
    if not (folder / "offsets.npy").is_file():
        np.save(folder / "offsets.npy", offsets)
    return opened


def open_arrays(folder: Path, meta: Meta) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Map the arrays for reading.

    Returns:
        The arrays by name, and the offsets.

    Raises:
        DataError: a file is missing, cut short, or of another shape than described.
    """
    offsets = _open(folder / "offsets.npy", (meta.rows + 1,))
    arrays = {
        spec.name: _open(folder / f"{spec.name}.npy", _shape(spec, offsets)) for spec in meta.arrays
    }
    return arrays, np.asarray(offsets)


def _open(path: Path, shape: tuple[int, ...]) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # no file, or one that ends before its array does
        array = np.empty(0)
    if array.shape != shape:
        raise DataError(
            f"the teacher cache file {path} is missing, cut short or damaged; delete the folder "
            f"{path.parent} and build the cache again"
        )
    return array


def _shape(spec: ArraySpec, offsets: Array) -> tuple[int, ...]:
    entries = int(offsets[-1]) if spec.by_token else len(offsets) - 1
    return (entries, *spec.shape)


def read_progress(folder: Path) -> int:
    """How many batches of an unfinished build are on disk."""
    path = folder / "progress"
    return int(path.read_text()) if path.is_file() else 0


def write_progress(folder: Path, arrays: dict[str, Array], batches: int) -> None:
    """Note that so many batches are on disk, after they are."""
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]  # a memmap
    atomic_write(folder / "progress", str(batches))


def finish(partial: Path, folder: Path, meta: Meta) -> None:
    """Turn an unfinished build into a cache."""
    (partial / "progress").unlink(missing_ok=True)
    atomic_write(partial / "meta.json", meta.text())
    os.replace(partial, folder)
