"""Steps on any module, without transformers: which there are, and what each does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import nn

from hfcompress.calibration.batches import Calibration, as_calibration
from hfcompress.config import Config, StepConfig
from hfcompress.errors import ConfigError
from hfcompress.measure.size import calculate_sparsity
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.keep_zeros import at_each_step, masks_of_zeros, with_zeros
from hfcompress.pruning.prune import prune
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.quantize import quantize
from hfcompress.recipes.grid import Trial, points
from hfcompress.recipes.step_configs import STEP_CONFIGS, ShrinkStepConfig, Step, step_as_plain
from hfcompress.shrinking.shrink import shrink
from hfcompress.steps.context import StepReport
from hfcompress.sweep.evaluation import batches_key, function_key
from hfcompress.utils import Fields, Progress

ModuleStep: TypeAlias = "Config | Mapping[str, object] | Callable[[nn.Module], object]"
"""A step's config, a mapping as in a recipe, or a function that trains the module in place (or
returns another module)."""
Function = Callable[[nn.Module], object]
AnyModel: TypeAlias = "nn.Module | QuantizedModel"


class FunctionConfig(StepConfig):
    """A function of the caller's, by its name and code."""

    step_name = "function"
    trains = True

    function: str = Field("", description="name and digest of the function")


def module_trials(
    steps: Sequence[ModuleStep], grid: Sequence[Mapping[str, Sequence[Any]]], seed: int
) -> list[Trial]:
    """Every point of the grid, with the functions in their places.

    Raises:
        ConfigError: an unknown step or field, a step that takes transformers models, or one behind
            ``quantize``.
    """
    named = {place: step for place, step in enumerate(steps) if not is_function(step)}
    plain = [step_as_plain(step, place) for place, step in named.items()]
    places = list(named)
    moved = [{_moved(field, places): values for field, values in part.items()} for part in grid]
    functions = {
        place: Step("function", FunctionConfig(function=function_key(step)))
        for place, step in enumerate(steps)
        if place not in named
    }
    trials = []
    for trial in points(plain, moved, seed):
        own = dict(zip(places, trial.steps, strict=True)) | functions
        for step in own.values():
            _check(step.config)
        last = max(own, default=0)
        if any(isinstance(own[place].config, QuantizationConfig) for place in own if place < last):
            raise ConfigError(
                "quantize leaves no torch module for the steps after it; give it last"
            )
        settings = {
            field: trial.settings[_moved(field, places)]
            for part in grid
            for field in part
            if _moved(field, places) in trial.settings
        }
        ordered = tuple(own[place] for place in sorted(own))
        trials.append(replace(trial, steps=ordered, settings=settings))
    return trials


def module_beginnings(trials: Sequence[Trial], steps: Sequence[ModuleStep]) -> list[Trial]:
    """The beginnings of one pipeline: the dense module, and what each step leaves; a first function
    makes the dense module."""
    first = int(bool(steps) and is_function(steps[0]))
    (trial,) = trials
    return [
        replace(trial, index=count - first, steps=trial.steps[:count])
        for count in range(first, len(trial.steps) + 1)
    ]


def is_function(step: object) -> bool:
    """Whether a step is a function of the caller's."""
    return callable(step) and not isinstance(step, (Config, Mapping, type, nn.Module))


def _moved(field: str, places: Sequence[int]) -> str:
    """A dotted field of the grid, with places counted among the steps that are no functions."""
    head, bracket, rest = field.partition("]")
    if not bracket or not head.startswith("steps["):
        return field
    number = head.removeprefix("steps[")
    if not number.isdigit() or int(number) not in places:
        raise ConfigError(f"grid.{field}: steps[{number}] is not a step with fields")
    return f"steps[{places.index(int(number))}]{rest}"


def _check(config: StepConfig) -> None:
    if isinstance(config, ShrinkStepConfig) and config.recover is not None:
        raise ConfigError(
            "shrink.recover trains with transformers' Trainer; leave it out, and give a function "
            "that trains the module as a step of its own"
        )
    known = (PruningConfig, ShrinkStepConfig, QuantizationConfig, FunctionConfig)
    if type(config) not in known:
        raise ConfigError(
            f"the step {config.step_name} takes transformers models; for other modules there are "
            f"prune, shrink, quantize, and any function of the module, such as a training loop"
        )


# --- what a step does --------------------------------------------------------------------------


def run_module_step(
    model: nn.Module,
    step: Step,
    function: Function | None,
    rows: Rows,
    seed: int,
    progress: Progress,
) -> tuple[AnyModel, StepReport]:
    """Carry a step out on a module, which may be changed in place.

    Args:
        model: what the step before has left.
        step: which.
        function: of a function step.
        rows: what is calibrated on.
        seed: of what a function draws.
        progress: receives stages and notes.

    Raises:
        HfcompressError: as the step.
    """
    config = step.config
    progress.stage(f"{step.name}: {function_name(config) or getattr(config, 'method', '')}")
    if isinstance(config, PruningConfig):
        pruned = prune(model, config, rows.first(config.calibration_rows))
        _note(progress, step.name, pruned.notes)
        return model, StepReport.from_dict(pruned.to_dict())
    if isinstance(config, ShrinkStepConfig):
        shrunk = shrink(model, config.choice, rows.first(config.calibration_rows))
        _note(progress, step.name, shrunk.notes)
        return model, StepReport.from_dict(shrunk.to_dict())
    if isinstance(config, QuantizationConfig):
        small = quantize(model, config, rows.at_most(config.calibration_rows))
        _note(progress, step.name, (small.coverage.sentence, *small.notes))
        details = {name: value for name, value in small.to_dict().items() if name != "modules"}
        return small, StepReport(details=details)
    assert function is not None
    return _run_function(model, function, seed)


def _note(progress: Progress, name: str, notes: Sequence[str]) -> None:
    for note in notes:
        progress.note(f"{name}: {note}")


def function_name(config: StepConfig) -> str:
    """The name of a function step's function; empty for other steps."""
    return config.function.partition(" ")[0] if isinstance(config, FunctionConfig) else ""


def _run_function(model: nn.Module, function: Function, seed: int) -> tuple[nn.Module, StepReport]:
    """Call a function on the module; zeros of its weights stay, whatever its optimizer does."""
    masks = masks_of_zeros(model) if next(with_zeros(model), None) is not None else None
    held = nullcontext() if masks is None else at_each_step(
        model, masks.before_step, masks.after_step
    )  # fmt: skip
    with seeded(seed), held:
        found = function(model)
    if isinstance(found, nn.Module):
        model = found
    model.eval()
    return model, StepReport(details={"sparsity": calculate_sparsity(model).model})


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random while the body runs; leave their states as they were."""
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class Rows:
    """The batches that steps calibrate on, read once.

    Args:
        loader: any loader; None for none.
        model: names the members of batches.

    Raises:
        CalibrationError: no rows, or batches that do not fit the model.
    """

    def __init__(self, loader: object, model: nn.Module) -> None:
        self.calibration = None if loader is None else as_calibration(loader, model)

    @property
    def key(self) -> str:
        """A digest of the batches; empty without any."""
        found = self.calibration
        return "" if found is None else batches_key([dict(batch) for batch in found.batches])

    def first(self, rows: int | None) -> Calibration | None:
        """The first rows.

        Raises:
            CalibrationError: fewer than asked.
        """
        return None if self.calibration is None else self.calibration.first(rows)

    def at_most(self, rows: int | None) -> Calibration | None:
        """The first rows; all where there are fewer."""
        if self.calibration is None or rows is None or self.calibration.rows <= rows:
            return self.calibration
        return self.calibration.first(rows)


def settings_of_steps(steps: Sequence[Step]) -> list[Fields]:
    """The steps as a recipe writes them; functions by their names."""
    assert set(STEP_CONFIGS) >= {step.name for step in steps} - {"function"}
    return [
        {"function": name} if (name := function_name(step.config)) else step.to_dict()
        for step in steps
    ]
