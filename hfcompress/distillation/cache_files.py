"""The files of a teacher cache: arrays by row or by token, and ``meta.json`` that describes them.

::

    KEY/
        meta.json       the arrays, the teacher and the rows
        offsets.npy     int64 (rows + 1,): index of each row's first token in the arrays by token
        logits.npy      float32 (rows, ...) or (tokens of all rows, ...)
        hidden_3.npy    float16 (tokens of all rows, width): hidden states after layer 3

The arrays are memory-mapped, so that only the rows that are looked up are read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from hfcompress.data.encode import Encoded
from hfcompress.distillation.teacher_outputs import TEACHER_PREFIX
from hfcompress.distillation.teachers import Teacher
from hfcompress.errors import DataError
from hfcompress.models.outputs import BY_TOKEN
from hfcompress.training.hard_loss import Task
from hfcompress.utils import atomic_write, file_digest, has_digest

Array = NDArray[Any]
Row = dict[str, Any]
Collate = Callable[[list[Row]], dict[str, Tensor]]
Progress = Callable[[int, int], None]
FORMAT = 1
_ARRAY = re.compile(r"logits|hidden_\d+")
# Batches between two writes of the progress of an unfinished build.
_SAVE_EVERY = 50


@dataclass(frozen=True)
class ArraySpec:
    """One array of the cache.

    Attributes:
        name: ``"logits"`` or ``"hidden_N"``, the file's name without the suffix.
        dtype: numpy's name.
        shape: of one row, or of one token.
        by_token: one entry per token instead of one per row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    by_token: bool


@dataclass(frozen=True)
class Meta:
    """The contents of ``meta.json``.

    Attributes:
        teacher: hash of the teacher's weights and config.
        data: hash of the rows that the teacher read.
        preprocessing: further options that change the teacher's outputs, as text.
        rows: number of rows.
        task: what the logits mean.
        arrays: the arrays.
        format: version of these files.
        digests: SHA-256 of the array files; empty in caches of older versions.
    """

    teacher: str
    data: str
    preprocessing: str
    rows: int
    task: str
    arrays: tuple[ArraySpec, ...]
    format: int = FORMAT
    digests: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_meta(folder: Path) -> Meta:
    """Return the contents of ``meta.json``.

    Raises:
        DataError: it is missing, or of another format.
    """
    try:
        if not (folder / "meta.json").is_file():  # a pipe would be waited for
            raise OSError
        data = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = tuple(
            ArraySpec(**{**array, "shape": tuple(array["shape"])}) for array in data.pop("arrays")
        )
        meta = Meta(**data, arrays=arrays)
        names = [array.name for array in arrays]
        if len(set(names)) < len(names) or "logits" not in names:
            raise ValueError
        if not all(map(_ARRAY.fullmatch, names)):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        meta = None
    if meta is None or meta.format != FORMAT:
        raise DataError(
            f"cannot read {folder}/meta.json as a teacher cache of format {FORMAT}; delete the "
            f"folder and build the cache again"
        )
    return meta


def create_arrays(
    folder: Path, arrays: Sequence[ArraySpec], offsets: NDArray[np.int64], go_on: bool
) -> dict[str, Array]:
    """Return new array files, mapped for writing.

    Args:
        folder: where they are made.
        arrays: which.
        offsets: index of each row's first token in the arrays by token.
        go_on: return those of an interrupted build, which has written some batches.

    Raises:
        OSError: they cannot be written; the disk is full, perhaps.
    """
    opened: dict[str, Array] = {}
    for spec in arrays:
        path, shape = folder / f"{spec.name}.npy", _shape(spec, offsets)
        mode: Literal["r+", "w+"] = "r+" if go_on else "w+"
        opened[spec.name] = np.lib.format.open_memmap(path, mode, np.dtype(spec.dtype), shape)
        if not go_on and hasattr(os, "posix_fallocate"):
            # A page of a mapped file for which the disk has no room ends the process (SIGBUS).
            with path.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    np.save(folder / "offsets.npy", offsets)
    return opened


def open_arrays(folder: Path, meta: Meta) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Return the arrays by name and the offsets, mapped for reading.

    Raises:
        DataError: a file is missing, truncated, changed, or of another shape than described.
    """
    for name, digest in meta.digests.items():
        if not has_digest(folder / name, digest):
            raise _damaged(folder / name)
    offsets = _open(folder / "offsets.npy", (meta.rows + 1,))
    arrays = {
        spec.name: _open(folder / f"{spec.name}.npy", _shape(spec, offsets)) for spec in meta.arrays
    }
    return arrays, np.asarray(offsets)


def _open(path: Path, shape: tuple[int, ...]) -> Array:
    try:
        if not path.is_file():
            raise OSError
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError):  # a missing or truncated file
        array = np.empty(0)
    if array.shape != shape:
        raise _damaged(path)
    return array


def _damaged(path: Path) -> DataError:
    return DataError(
        f"the teacher cache file {path} is missing, truncated or damaged; delete the folder "
        f"{path.parent} and build the cache again"
    )


def _shape(spec: ArraySpec, offsets: Array) -> tuple[int, ...]:
    entries = int(offsets[-1]) if spec.by_token else len(offsets) - 1
    return (entries, *spec.shape)


def read_progress(folder: Path) -> int:
    """Return how many batches of an unfinished build are on disk."""
    path = folder / "progress"
    return int(path.read_text()) if path.is_file() else 0


def write_progress(folder: Path, arrays: Mapping[str, Array], batches: int) -> None:
    """Flush the arrays, then record the number of batches on disk."""
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]  # a memmap
    atomic_write(folder / "progress", str(batches))


def finish(partial: Path, folder: Path, meta: Meta) -> None:
    """Write ``meta.json`` and move the finished build to its place."""
    (partial / "progress").unlink(missing_ok=True)
    meta = replace(meta, digests={path.name: file_digest(path) for path in partial.glob("*.npy")})
    atomic_write(partial / "meta.json", meta.text())
    os.replace(partial, folder)


class CacheBuild:
    """Computes a cache in a partial folder, then renames it.

    Args:
        teacher: gives the outputs of each batch.
        task: what its logits mean.
        rows, collate: model inputs, and their collator.
        batch_size: rows in a batch.
        place: folder of the finished cache.
    """

    def __init__(
        self,
        teacher: Teacher,
        task: Task,
        rows: Dataset,
        collate: Collate,
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
        # The name contains the batch size, because a build is resumed by counting batches.
        self.partial = place.with_name(f"{place.name}.partial-{batch_size}")

    def run(self, meta: Meta, progress: Progress | None) -> None:
        """Compute the outputs of all rows that are not on disk yet, and finish the cache."""
        self.partial.mkdir(exist_ok=True)
        skip = read_progress(self.partial)
        done = 0
        arrays: dict[str, Array] = {}
        specs: tuple[ArraySpec, ...] = ()
        offsets = np.zeros(1, np.int64)
        for number, (indices, batch) in enumerate(self.data.batches(self.batch_size)):
            done += len(indices)
            if number < skip and arrays:
                continue
            found = self._ask(batch)
            if not arrays:  # a resumed build runs the first batch again, for the shapes
                specs = self._specs(found)
                offsets = self._offsets()
                arrays = create_arrays(self.partial, specs, offsets, go_on=skip > 0)
            self._write(arrays, specs, offsets, indices, found)
            if progress is not None:
                progress(done, len(self.data))
            if (number + 1) % _SAVE_EVERY == 0:
                write_progress(self.partial, arrays, max(skip, number + 1))
        write_progress(self.partial, arrays, 0)
        finish(self.partial, self.place, replace(meta, arrays=specs))

    @torch.no_grad()
    def _ask(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by array name, (batch, ...) or (batch, tokens, ...)."""
        outputs = self.teacher.ask(batch).to(torch.device("cpu"))
        logits = outputs.logits.transpose(1, 2) if self.task == "spans" else outputs.logits
        states = {f"hidden_{layer}": state for layer, state in outputs.hidden_states.items()}
        return {"logits": logits, **states}

    def _specs(self, found: dict[str, Tensor]) -> tuple[ArraySpec, ...]:
        """Return the arrays' shapes, from the outputs of the first batch."""
        specs = []
        for name, tensor in found.items():
            by_token = name != "logits" or self.task in BY_TOKEN
            # Images have equal sizes, so their states are stored by row, maps or tokens.
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
        arrays: Mapping[str, Array],
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
