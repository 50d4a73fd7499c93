"""``TeacherCache``: a teacher's outputs for each row of a data set, on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor, nn

from hfcompress.data.load import fingerprint
from hfcompress.distillation.cache_files import (
    ArraySpec,
    CacheBuild,
    Collate,
    Meta,
    Progress,
    Row,
    open_arrays,
    read_meta,
)
from hfcompress.distillation.teacher_outputs import ROW, TeacherOutputs
from hfcompress.distillation.teachers import TeacherFunction, as_teacher
from hfcompress.errors import ConfigError, DataError
from hfcompress.models.loading import weights_hash
from hfcompress.storage.caches import keep_below_limit, mark_used, teacher_folder
from hfcompress.training.outputs import LABELS, infer_task


class TeacherCache:
    """A teacher's outputs for the rows of one data set, memory-mapped from a folder.

    ::

        cache = TeacherCache.build(teacher, rows, collate, hidden_layers=(1, 3, 5))
        rows = cache.attach(rows)            # adds a column "row" that survives shuffling
        outputs = cache.lookup(batch["row"])  # a TeacherOutputs

    Args:
        folder: of a finished build.

    Raises:
        DataError: the folder does not hold a cache, or one of its files is truncated.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        mark_used(self.folder)
        self._arrays, self._offsets = open_arrays(self.folder, self.meta)
        self.hidden_layers = tuple(
            int(spec.name.removeprefix("hidden_"))
            for spec in self.meta.arrays
            if spec.name != "logits"
        )

    def __len__(self) -> int:
        return self.meta.rows

    @classmethod
    def build(
        cls,
        teacher: nn.Module | TeacherFunction,
        rows: Dataset,
        collate: Collate,
        *,
        hidden_layers: Sequence[int] = (),
        precision: Literal["fp32", "bf16"] = "fp32",
        batch_size: int = 32,
        folder: str | Path | None = None,
        preprocessing: str = "",
        identity: str | None = None,
        progress: Progress | None = None,
        damaged: Callable[[str], None] | None = None,
    ) -> TeacherCache:
        """Return the cache of a teacher's outputs; compute it if there is none.

        Its folder is named by a hash of the teacher's weights and config and of the rows that the
        teacher reads, so a cache is never used for another teacher or other rows. An interrupted
        build is resumed; processes that need the same cache wait for the first one.

        Args:
            teacher: a model, run in evaluation mode without gradients; or a function of the
                batch's tensors that returns logits.
            rows: model inputs, encoded by the teacher's tokenizer or processor.
            collate: rows -> one padded batch of tensors.
            hidden_layers: layers whose hidden states are kept too, in float16.
            precision: bf16 runs the teacher under autocast, faster on hardware with bf16.
            batch_size: rows in a forward pass.
            folder: parent folder of caches; by default in the cache directory of ``datasets``.
            preprocessing: text that is hashed too, for preprocessing that the rows do not show
                (an image processor's config).
            identity: unique name of a teacher that is a function.
            progress: called with (rows done, total rows).
            damaged: receives a sentence about a damaged cache, which is renamed and built again;
                None raises.

        Raises:
            ConfigError: a function without an identity, or hidden layers of a function.
            DataError: no rows, or a damaged cache.
            OSError, OutputError: the cache cannot be written.
        """
        if len(rows) == 0:
            raise DataError("rows is empty; give at least one row for the teacher to label")
        who = _identity(teacher, identity, hidden_layers)
        options = f"{preprocessing} {precision} {sorted(hidden_layers)}"
        data = _content(rows)
        place = (teacher_folder() if folder is None else Path(folder)) / _digest(who, data, options)
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place):
            if damaged is not None and place.exists():
                _set_aside_if_damaged(place, damaged)
            if not place.exists():
                task = infer_task(teacher) if isinstance(teacher, nn.Module) else "classification"
                meta = Meta(who, data, options, len(rows), task, ())
                adapter = as_teacher(teacher, precision, sorted(hidden_layers))
                try:
                    CacheBuild(adapter, task, rows, collate, batch_size, place).run(meta, progress)
                finally:
                    adapter.close()
                keep_below_limit("teacher", place)
        return cls.open(place)

    @classmethod
    def open(
        cls, folder: str | Path, teacher: nn.Module | None = None, rows: Dataset | None = None
    ) -> TeacherCache:
        """Return the cache in a folder after checking its teacher and rows.

        Args:
            folder: of the cache.
            teacher: the expected teacher; None skips the check.
            rows: the expected rows; None skips the check.

        Raises:
            DataError: another teacher or other rows, no cache, or a truncated file.
        """
        cache = cls(folder)
        if teacher is not None and cache.meta.teacher != _identity(teacher, None, ()):
            raise DataError(
                f"the teacher cache {cache.folder} was built from another teacher; build one for "
                f"this teacher with TeacherCache.build"
            )
        if rows is not None and cache.meta.data != _content(rows):
            raise DataError(
                f"the teacher cache {cache.folder} was built for other rows; build one for these "
                f"with TeacherCache.build"
            )
        return cache

    def attach(self, rows: Dataset) -> Dataset:
        """Return the rows with a column ``row``, the number of each row's outputs in the cache.

        The rows may be encoded by the student's tokenizer; they are matched by position.

        Raises:
            DataError: the number of rows differs from the cache's.
        """
        if len(rows) != len(self):
            raise DataError(
                f"the teacher cache {self.folder} has {len(self)} rows and the data {len(rows)}; "
                f"give the rows that it was built for, in the same order"
            )
        if ROW in rows.column_names:
            rows = rows.remove_columns(ROW)
        with_row = rows.add_column(ROW, np.arange(len(rows)))
        transform = rows.format["format_kwargs"].get("transform")
        if transform is None:
            return with_row

        def keep_row(batch: Row) -> Row:
            return {**transform(batch), ROW: batch[ROW]}

        return with_row.with_transform(keep_row)

    @staticmethod
    def collator(collate: Collate) -> Collate:
        """Return a collator that adds the column ``row`` to the batches of ``collate``."""

        def with_row(items: list[Row]) -> dict[str, Tensor]:
            numbers = torch.tensor([int(item[ROW]) for item in items])
            rest = [{key: item[key] for key in item if key != ROW} for item in items]
            return {**collate(rest), ROW: numbers}

        return with_row

    def lookup(self, rows: Tensor | Sequence[int]) -> TeacherOutputs:
        """Return the teacher's outputs for some rows.

        Args:
            rows: row numbers, in any order.

        Returns:
            Outputs on the CPU in float32; tokens are padded with zeros to the longest of these
            rows.

        Raises:
            DataError: a row number out of range.
        """
        numbers = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows, dtype=np.int64)
        outside = numbers[(numbers < 0) | (numbers >= len(self))]
        if outside.size:
            raise DataError(
                f"row {int(outside.flat[0])} is out of range: the teacher cache {self.folder} has "
                f"{len(self)} rows; attach it to the data that it was built for"
            )
        found = {spec.name: self._take(spec, numbers) for spec in self.meta.arrays}
        if self.meta.task == "spans":
            found["logits"] = found["logits"].transpose(1, 2)
        states = {layer: found[f"hidden_{layer}"] for layer in self.hidden_layers}
        return TeacherOutputs(logits=found["logits"], hidden_states=states)

    def _take(self, spec: ArraySpec, numbers: NDArray[np.int64]) -> Tensor:
        array = self._arrays[spec.name]
        if not spec.by_token:
            return torch.from_numpy(array[numbers].astype(np.float32))
        begins, ends = self._offsets[numbers], self._offsets[numbers + 1]
        longest = int((ends - begins).max(initial=0))
        padded = np.zeros((len(numbers), longest, *spec.shape), np.float32)
        for place, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            padded[place, : end - begin] = array[begin:end]
        return torch.from_numpy(padded)


def _content(rows: Dataset) -> str:
    """Return a hash of the rows that the teacher reads; images are hashed by their bytes."""
    columns = tuple(name for name in rows.column_names if name not in (*LABELS, ROW))
    return fingerprint(rows.with_format(None), columns)


def _identity(
    teacher: nn.Module | TeacherFunction, identity: str | None, layers: Sequence[int]
) -> str:
    if not isinstance(teacher, nn.Module):
        if identity is None or layers:
            raise ConfigError(
                "a teacher that is a function needs identity='UNIQUE NAME' and cannot keep "
                "hidden_layers"
            )
        return identity
    config = getattr(teacher, "config", None)
    text = json.dumps(config.to_dict(), sort_keys=True, default=str) if config is not None else ""
    return _digest(type(teacher).__name__, text, weights_hash(teacher))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _locked(place: Path) -> AbstractContextManager[object]:
    """A lock on a cache; none on a finished one in a folder that is only read."""
    if place.exists() and not os.access(place.parent, os.W_OK):
        return nullcontext()
    return FileLock(f"{place}.lock")


def _set_aside_if_damaged(place: Path, note: Callable[[str], None]) -> None:
    try:
        TeacherCache.open(place)
    except DataError as error:
        aside = place.with_name(f"{place.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        place.rename(aside)
        note(f"{error}; it is moved to {aside} and built again")
