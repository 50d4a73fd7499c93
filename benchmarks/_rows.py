"""What the benchmarks share that train many models: one experiment, and rows that are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from hfcompress.config import StepConfig
from hfcompress.inference import predict
from hfcompress.steps.context import Context, ModelState
from hfcompress.steps.registry import run_step
from hfcompress.sweep.experiment import Experiment
from hfcompress.tasks.registry import TASKS
from hfcompress.utils import atomic_write

RowType = TypeVar("RowType", bound=Any)


@dataclass(frozen=True)
class DenseSetting:
    """The fine-tuned dense model and its data, for rows that call steps by hand."""

    bench: Experiment

    @property
    def model(self) -> PreTrainedModel:
        """The dense model, yours to change."""
        return self.bench.start(self.bench.trials[0]).network

    def context(self, seed: int) -> Context:
        """What a step needs besides its model, without checkpoints."""
        (trial,) = self.bench.trials
        state = ModelState(self.bench.loaded.model, self.bench.loaded.processor, self.bench.task)
        common = self.bench.context(trial, len(trial.steps), state, lambda: self.model)
        return replace(common, seed=seed)

    def accuracy(self, model: nn.Module) -> float:
        """On the measured rows, in [0, 1]."""
        rows = self.bench.eval
        logits = predict(model, rows, self.bench.recipe.measure.batch_size)
        return float(np.mean(logits.argmax(1) == rows.labels))


def after_step(
    model: PreTrainedModel, config: StepConfig, context: Context, is_shrunk: bool = False
) -> PreTrainedModel:
    """What a step makes of a model, which may be changed in place."""
    task = next(t for t in TASKS.values() if t.modality == context.examples.modality)
    state = ModelState(model, context.processor, task, is_shrunk=is_shrunk)
    return run_step(state, config, context)[0].network


def kept_row(path: Path, kind: type[RowType], make: Callable[[], RowType]) -> RowType:
    """The row of a file, or made and put there, so that a run that was cut goes on."""
    if path.is_file():
        row: RowType = kind(**json.loads(path.read_text(encoding="utf-8")))
        return row
    row = make()
    atomic_write(path, json.dumps(asdict(row)) + "\n")
    return row
