"""What the benchmarks share that train many models: one workbench, and rows that are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from hfcompress.inference import predict
from hfcompress.steps.context import Context
from hfcompress.sweep.experiment import Workbench
from hfcompress.utils import atomic_write

RowType = TypeVar("RowType", bound=Any)


@dataclass(frozen=True)
class Surroundings:
    """The fine-tuned dense model and its data, for rows that call steps by hand."""

    bench: Workbench

    @property
    def model(self) -> PreTrainedModel:
        """The dense model, yours to change."""
        return self.bench.start(self.bench.trials[0])

    def context(self, seed: int) -> Context:
        """The surroundings of a step, without checkpoints."""
        (trial,) = self.bench.trials
        common = self.bench.context(trial, "", lambda: self.model, None)
        return replace(common, seed=seed, workdir=None)

    def accuracy(self, model: nn.Module) -> float:
        """On the measured rows, in [0, 1]."""
        rows = self.bench.eval
        logits = predict(model, rows, self.bench.recipe.measure.batch_size)
        return float(np.mean(logits.argmax(1) == rows.labels))


def kept_row(path: Path, kind: type[RowType], make: Callable[[], RowType]) -> RowType:
    """The row of a file, or made and put there, so that a run that was cut goes on."""
    if path.is_file():
        row: RowType = kind(**json.loads(path.read_text(encoding="utf-8")))
        return row
    row = make()
    atomic_write(path, json.dumps(asdict(row)) + "\n")
    return row
