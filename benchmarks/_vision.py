"""What the vision rows share: recipes on Fashion-MNIST, cut, changed and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from benchmarks._clock import CpuClock
from benchmarks._rows import DenseSetting
from hfcompress.errors import HfcompressError
from hfcompress.inference import predict
from hfcompress.measure.evaluation import compute_metric
from hfcompress.measure.macs import count_macs
from hfcompress.measure.size import count_parameters
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import Recipe, load_recipe
from hfcompress.steps.context import Context
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import Experiment, prepare
from hfcompress.sweep.run import run
from hfcompress.sweep.trial import Runner
from hfcompress.utils import Progress


@dataclass(frozen=True)
class Row:
    """One compressed model on the 10,000 test images.

    Attributes:
        accuracy: from 0 to 1.
        dense: of the model that it is compared with, likewise.
        minutes: of all that was trained and measured for this row, the dense model aside; CPU
            minutes of each of torch's threads (`CpuClock`).
        parameters: of the compressed model, zeros included.
        more: further figures by name, such as ``macs`` (share left) or ``bytes`` (share left).
    """

    accuracy: float
    dense: float
    minutes: float
    parameters: int
    more: dict[str, float] = field(default_factory=dict)

    @property
    def points(self) -> float:
        """Points gained (or, below 0, lost) against the dense model."""
        return round(100 * (self.accuracy - self.dense), 2)


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Attributes:
        work: folder of the runs.
        overrides: of every recipe, such as where the data lie.
    """

    work: Path
    overrides: tuple[str, ...] = ()

    def recipe(self, name: str, steps: Sequence[dict[str, Any]] | None = None) -> Recipe:
        """A shipped recipe; with other steps after its first, which trains the dense model."""
        shipped = load_recipe(find_recipe(name), self.overrides)
        if steps is None:
            return shipped
        return shipped.replace(steps=(shipped.steps[0], *steps), grid=(), save_models=False)

    def bench(self, name: str) -> Experiment:
        """Model and data of a recipe whose dense model is trained (kept by content hash)."""
        return prepare(self.recipe(name, ()), Told(), StepCache())

    def run(self, recipe: Recipe, row_name: str) -> dict[str, Any]:
        """The row of a recipe without a grid, as a run's folder keeps it.

        Raises:
            HfcompressError: its only trial failed.
        """
        result = run(recipe, self.work / "runs" / row_name.replace(" ", "-"), Told())
        if result.failures:
            raise HfcompressError(f"{row_name}: {result.failures[0][1]}")
        row: dict[str, Any] = result.rows[0]
        return row

    def dense(self, name: str) -> dict[str, Any]:
        """The row of a recipe's dense model."""
        return self.run(self.recipe(name, ()), f"{name} dense")

    def compressed(self, name: str, row_name: str, steps: Sequence[dict[str, Any]] | None) -> Row:
        """The row of a recipe's dense model after further steps; None takes the recipe's own."""
        dense = self.dense(name)  # trained here where it is not kept yet
        clock = CpuClock()
        row = self.run(self.recipe(name, steps), row_name)
        return row_of(row, dense, clock.minutes)

    def context(self, name: str, seed: int) -> Context:
        """What a step needs that follows a recipe's dense model and is called by hand."""
        bench = self.bench(name)
        runner, (trial,) = Runner(bench, bench.trials), bench.trials
        trained = partial(runner.dense_model, trial)  # the training is kept by content hash
        return replace(DenseSetting(bench).context(seed), dense_model=trained)


def model_row(
    model: PreTrainedModel,
    context: Context,
    minutes: float,
    inputs: Mapping[str, torch.Tensor],
    more: Mapping[str, float] | None = None,
) -> Row:
    """The row of a model that was made by hand, beside the context's dense one."""
    dense = context.dense_model()
    shares = {
        "macs": count_macs(model, inputs).total / count_macs(dense, inputs).total,
        "bytes": _bytes(model) / _bytes(dense),
        "sparsity": 0.0,
    }
    before, after = (_accuracy(network, context) for network in (dense, model))
    return Row(after, before, minutes, count_parameters(model), {**shares, **(more or {})})


def _accuracy(model: PreTrainedModel, context: Context) -> float:
    logits = predict(model, context.eval, 250)
    return compute_metric("accuracy", logits, context.eval.labels)


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def row_of(row: dict[str, Any], dense: dict[str, Any], minutes: float) -> Row:
    """A run's row beside the dense one.

    Args:
        row, dense: as a run's folder keeps them.
        minutes: of making it.
    """
    more = {
        "macs": row["macs"] / dense["macs"],
        "bytes": row["bytes"] / dense["bytes"],
        "sparsity": row["actual_sparsity"],
    }
    return Row(row["value"], dense["value"], minutes, row["parameters"], more)


def trained_minutes(row: dict[str, Any]) -> float:
    """Minutes that the training steps of a row took, also where their result was kept."""
    return float(sum(step.get("seconds", 0.0) for step in row["steps"]) / 60)


class Told(Progress):
    """One line for each stage, on stderr."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, stderr=True)

    def stage(self, name: str) -> None:
        """A new stage has begun."""
        self.console.print(f"{time.strftime('%H:%M:%S')} {name}")


RowMaker = Callable[[Setting], Row]
