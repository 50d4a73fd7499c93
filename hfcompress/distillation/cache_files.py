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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from hfcompress.data.encode import Encoded
from hfcompress.distillation.losses import Task
from hfcompress.distillation.teacher_outputs import TEACHER_PREFIX
from hfcompress.distillation.teachers import Teacher
from hfcompress.errors import DataError
from hfcompress.utils import atomic_write

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


Progress = Callable[[int, int], None]
# Batches between two notes of how far an unfinished build is.
_SAVE_EVERY = 50


class CacheBuild:
    """Computes a cache into a folder beside its place, then renames it.

    Args:
        teacher: is asked about each batch.
        task: what its logits mean.
        rows, collate: model inputs, and how they become a batch.
        batch_size: rows in a batch.
        place: of the finished cache.
    """

    def __init__(
        self,
        teacher: Teacher,
        task: Task,
        rows: Dataset,
        collate: Any,
        batch_size: int,
        place: Path,
    ) -> None:
        self.teacher, self.task, self.place, self.batch_size = teacher, task, place, batch_size
        columns = (f"{TEACHER_PREFIX}input_ids", "input_ids")
        tokens = next((name for name in columns if name in rows.column_names), None)
        lengths = None
        if tokens is not None:
            lengths = np.array([len(ids) for ids in rows[tokens][:]], dtype=np.int64)
        self.data = Encoded(rows, lengths, collate)
        # The batch size stands in the name: a build is resumed by counting batches.
        self.partial = place.with_name(f"{place.name}.partial-{batch_size}")

    def run(self, meta: Meta, progress: Progress | None) -> None:
        """Label all rows that are not labelled yet."""
        self.partial.mkdir(exist_ok=True)
        skip = read_progress(self.partial)
        done = 0
        arrays: dict[str, Any] = {}
        specs: tuple[ArraySpec, ...] = ()
        offsets = np.zeros(1, np.int64)
        for number, (indices, batch) in enumerate(self.data.batches(self.batch_size)):
            done += len(indices)
            if number < skip and arrays:
                continue
            found = self._ask(batch)
            if not arrays:  # the first batch is run again after a cut: it shows the shapes
                specs = self._specs(found)
                offsets = self._offsets()
                arrays = create_arrays(self.partial, specs, offsets)
            self._write(arrays, specs, offsets, indices, found)
            if progress is not None:
                progress(done, len(self.data))
            if (number + 1) % _SAVE_EVERY == 0:
                write_progress(self.partial, arrays, max(skip, number + 1))
        write_progress(self.partial, arrays, 0)
        finish(
            self.partial,
            self.place,
            replace(meta, arrays=specs),
        )

    @torch.no_grad()
    def _ask(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Arrays by name, (batch, ...) or (batch, tokens, ...)."""
        said = self.teacher.ask(batch).to(torch.device("cpu"))
        logits = said.logits.transpose(1, 2) if self.task == "spans" else said.logits
        states = {f"hidden_{layer}": state for layer, state in said.hidden_states.items()}
        return {"logits": logits, **states}

    def _specs(self, found: dict[str, Tensor]) -> tuple[ArraySpec, ...]:
        """What is kept of each row, as a first batch shows."""
        specs = []
        for name, tensor in found.items():
            by_token = name != "logits" or self.task in ("tokens", "spans")
            # Images differ in nothing: their states are kept whole, maps or tokens.
            by_token = by_token and self.data.lengths is not None
            dtype = "float32" if name == "logits" else "float16"
            specs.append(ArraySpec(name, dtype, tuple(tensor.shape[1 + by_token :]), by_token))
        return tuple(specs)

    def _offsets(self) -> NDArray[np.int64]:
        lengths = self.data.lengths
        if lengths is None:
            lengths = np.zeros(len(self.data), dtype=np.int64)
        return np.concatenate([[0], np.cumsum(lengths)])

    @staticmethod
    def _write(
        arrays: dict[str, Any],
        specs: tuple[ArraySpec, ...],
        offsets: NDArray[np.int64],
        indices: NDArray[np.int64],
        found: dict[str, Tensor],
    ) -> None:
        for spec in specs:
            values = found[spec.name].numpy()
            if not spec.by_token:
                arrays[spec.name][indices] = values
                continue
            for place, index in enumerate(indices):
                begin, end = offsets[index], offsets[index + 1]
                arrays[spec.name][begin:end] = values[place, : end - begin]
