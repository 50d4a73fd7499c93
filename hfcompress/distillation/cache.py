"""``TeacherCache``: what a teacher says of each row, computed once and looked up afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
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
    Meta,
    Progress,
    open_arrays,
    read_meta,
)
from hfcompress.distillation.teacher_outputs import LABELS, ROW, TeacherOutputs
from hfcompress.distillation.teachers import TeacherFunction, as_teacher, infer_task
from hfcompress.errors import ConfigError, DataError
from hfcompress.models.loading import weights_hash

Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


class TeacherCache:
    """A teacher's outputs for the rows of one data set, memory-mapped from a folder.

    ::

        cache = TeacherCache.build(teacher, rows, collate, hidden_layers=(1, 3, 5))
        rows = cache.attach(rows)            # a column "row" that shuffling takes along
        outputs = cache.lookup(batch["row"])  # a TeacherOutputs

    Args:
        folder: as `build` left it.

    Raises:
        DataError: the folder is no cache, or one of its files is cut short.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
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
    ) -> TeacherCache:
        """Find the cache of a teacher's outputs, or compute it.

        It lies under a hash of the teacher's weights and config and of the rows as the teacher
        reads them, so another teacher or another text never meets an old cache. A build that
        was cut goes on where it was; processes that want the same cache wait for the first one.

        Args:
            teacher: a model, run in evaluation mode without gradients and left as it was; or a
                function of the batch's tensors that gives logits.
            rows: model inputs as the teacher's tokenizer or processor made them.
            collate: rows -> one padded batch of tensors.
            hidden_layers: layers whose hidden states are kept too, in half precision.
            precision: bf16 runs the teacher under autocast, faster where the processor can.
            batch_size: rows the teacher reads at once.
            folder: where caches lie; in the cache directory of ``datasets`` by default.
            preprocessing: what else decides what the teacher reads, where the rows do not show
                it (an image processor's config).
            identity: names a teacher that is a function; another function, another name.
            progress: called with (rows done, rows in all).

        Raises:
            ConfigError: a function without an identity, or hidden layers of a function.
            DataError: no rows, or a cache that is there and damaged.
        """
        if len(rows) == 0:
            raise DataError("there are no rows for the teacher to label; give at least one")
        who = _identity(teacher, identity, hidden_layers)
        said = f"{preprocessing} {precision} {sorted(hidden_layers)}"
        data = _content(rows)
        place = _folder(folder) / _digest(who, data, said)
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            if not place.exists():
                task = infer_task(teacher) if isinstance(teacher, nn.Module) else "classification"
                meta = Meta(who, data, said, len(rows), task, ())
                asked = as_teacher(teacher, precision, sorted(hidden_layers))
                try:
                    CacheBuild(asked, task, rows, collate, batch_size, place).run(meta, progress)
                finally:
                    asked.close()
        return cls.open(place)

    @classmethod
    def open(
        cls, folder: str | Path, teacher: nn.Module | None = None, rows: Dataset | None = None
    ) -> TeacherCache:
        """Open a cache that is there, and check what it is of.

        Args:
            folder: of the cache.
            teacher: must be the one that the cache was made by.
            rows: must be the rows that it was made for.

        Raises:
            DataError: another teacher or other rows, no cache, or a file cut short.
        """
        cache = cls(folder)
        if teacher is not None and cache.meta.teacher != _identity(teacher, None, ()):
            raise DataError(
                f"the teacher cache {cache.folder} belongs to another teacher; build one for "
                f"this teacher with TeacherCache.build"
            )
        if rows is not None and cache.meta.data != _content(rows):
            raise DataError(
                f"the teacher cache {cache.folder} was made for other rows; build one for these "
                f"with TeacherCache.build"
            )
        return cache

    def attach(self, rows: Dataset) -> Dataset:
        """The rows with an integer column ``row`` that says where their outputs are.

        The rows may be the student's, tokenised in its own way: they are matched by position.

        Raises:
            DataError: another number of rows than the cache has.
        """
        if len(rows) != len(self):
            raise DataError(
                f"the teacher cache {self.folder} holds {len(self)} rows and the data "
                f"{len(rows)}; give the rows it was built for, in the same order"
            )
        if ROW in rows.column_names:
            rows = rows.remove_columns(ROW)
        with_row = rows.add_column(ROW, np.arange(len(rows)))
        transform = rows.format["format_kwargs"].get("transform")
        if transform is None:
            return with_row

        def keep_row(batch: dict[str, Any]) -> dict[str, Any]:
            return {**transform(batch), ROW: batch[ROW]}

        return with_row.with_transform(keep_row)

    @staticmethod
    def collator(collate: Collate) -> Collate:
        """A collator that takes the column ``row`` along, whatever ``collate`` knows of it."""

        def with_row(items: list[dict[str, Any]]) -> dict[str, Tensor]:
            numbers = torch.tensor([int(item[ROW]) for item in items])
            rest = [{key: item[key] for key in item if key != ROW} for item in items]
            return {**collate(rest), ROW: numbers}

        return with_row

    def lookup(self, rows: Tensor | Sequence[int]) -> TeacherOutputs:
        """What the teacher said of some rows.

        Args:
            rows: their numbers, in any order.

        Returns:
            Outputs on the CPU in float32; tokens are padded with zeros to the longest of these
            rows.

        Raises:
            DataError: a number that is no row.
        """
        numbers = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows, dtype=np.int64)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise DataError(
                f"row {int(numbers.max())} is not among the {len(self)} rows of the teacher "
                f"cache {self.folder}; attach the cache to the data it was built for"
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
    """Hash of the rows as the teacher reads them; images count by their bytes."""
    columns = tuple(name for name in rows.column_names if name not in (*LABELS, ROW))
    return fingerprint(rows.with_format(None), columns)


def _identity(
    teacher: nn.Module | TeacherFunction, identity: str | None, layers: Sequence[int]
) -> str:
    if not isinstance(teacher, nn.Module):
        if identity is None or layers:
            raise ConfigError(
                "a teacher that is a function needs identity='A NAME OF ITS OWN' and has no "
                "hidden_layers to keep"
            )
        return identity
    config = getattr(teacher, "config", None)
    text = json.dumps(config.to_dict(), sort_keys=True, default=str) if config is not None else ""
    return _digest(type(teacher).__name__, text, weights_hash(teacher))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _folder(folder: str | Path | None) -> Path:
    return Path(folder or Path(datasets.config.HF_DATASETS_CACHE) / "hfcompress-teachers")
