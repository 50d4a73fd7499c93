"""Computing a teacher cache: batch after batch into files, to be resumed where it was cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from hfcompress.data.encode import Encoded
from hfcompress.distillation.batch import TEACHER_PREFIX
from hfcompress.distillation.cache_files import (
    ArraySpec,
    Meta,
    create_arrays,
    finish,
    read_progress,
    write_progress,
)
from hfcompress.distillation.losses import Task
from hfcompress.distillation.teachers import Teacher

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
