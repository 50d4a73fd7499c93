"""The recipe: model + data + steps + an optional grid + what to measure, checked whole.

Nothing is loaded here. A `Recipe` is frozen plain data; `expand` turns it into trials.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from hfcompress.config import Config, nearest
from hfcompress.data import DataConfig
from hfcompress.errors import ConfigError
from hfcompress.models import ModelConfig, task_modality
from hfcompress.pruning.config import PruningConfig
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.recipe.aware_config import QuantizationAwareConfig
from hfcompress.recipe.distill_config import DistillConfig
from hfcompress.recipe.finetune_config import FinetuneConfig
from hfcompress.recipe.measure_config import MeasureConfig
from hfcompress.recipe.shrink_config import ShrinkStepConfig
from hfcompress.recipe.training_config import (
    GradualConfig,
    LotteryStepConfig,
    ProgressiveStepConfig,
    RecoverConfig,
)
from hfcompress.recipe.yaml import parse_yaml
from hfcompress.vocabulary.config import VocabularyConfig

# What a step is called in YAML, and the config class that checks it. The function that carries a
# config out is in steps.py; a test holds the two together.
STEP_CONFIGS: dict[str, type[Config]] = {
    "finetune": FinetuneConfig,
    "prune": PruningConfig,
    "qat": QuantizationAwareConfig,
    "quantize": QuantizationConfig,
    "shrink": ShrinkStepConfig,
    "recover": RecoverConfig,
    "gradual": GradualConfig,
    "lottery": LotteryStepConfig,
    "progressive": ProgressiveStepConfig,
    "distill": DistillConfig,
    "vocabulary": VocabularyConfig,
}
Choices = Annotated[tuple[Any, ...], Field(strict=False)]
_INDEXED = re.compile(r"steps\[(\d+)\]\.(.+)")


class ReferenceConfig(Config):
    """Published figures to stand beside ours, by requested sparsity."""

    source: str = Field(description="where the figures come from")
    values: dict[float, float] = Field(
        strict=False, description="requested sparsity -> the published value of the metric, 0 to 1"
    )
    notes: dict[float, str] = Field(
        default_factory=dict, strict=False, description="requested sparsity -> a remark"
    )


@dataclass(frozen=True)
class Step:
    """One step: its name in YAML and its checked config."""

    name: str
    config: Config

    def plain(self) -> dict[str, Any]:
        """As it stands in a recipe, every field spelt out."""
        return {self.name: self.config.plain()}


class Recipe(Config):
    """A whole recipe.

    Raises:
        ConfigError: anything that does not fit, grid included, as one sentence.
    """

    name: str = Field("recipe", min_length=1, description="names the output folder")
    description: str = Field("", description="what it shows")
    model: ModelConfig = Field(description="which model")
    task: str = Field("text-classification", description="decides the Auto class")
    data: DataConfig = Field(description="which examples")
    steps: tuple[dict[str, Any], ...] = Field((), strict=False, description="what is done")
    grid: tuple[dict[str, Choices], ...] = Field(
        (), strict=False, description="fields that vary: every combination is a trial"
    )
    measure: MeasureConfig = Field(default_factory=MeasureConfig, description="what is measured")
    seed: int = Field(0, ge=0, description="of everything random")
    reference: ReferenceConfig | None = Field(None, description="published figures")
    save_models: bool = Field(False, description="keep the model of every trial")
    save_sparse: bool = Field(
        False, description="keep them with zeros packed; import hfcompress to load such a model"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_grid_is_a_list_of_one(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("grid"), Mapping):
            data = {**data, "grid": [data["grid"]]}
        return data

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        task_modality(self.task)
        expand(self)
        if self.save_sparse and not self.save_models:
            raise ValueError("save_sparse says how models are kept; write save_models: true, too")
        return self

    def plain(self) -> dict[str, Any]:
        """The recipe as plain data, every default spelt out.

        Fields that the grid varies stand in the steps as they were written.
        """
        data = super().plain()
        steps = [step.plain() for step in _points(self)[0].steps]
        for field in dict.fromkeys(field for part in self.grid for field in part):
            if field != "seed":
                place, name, inner = _locate(field, self.steps, "grid.")
                _restore(steps[place][name], self.steps[place][name] or {}, inner.split("."))
        data["steps"] = steps
        return data


@dataclass(frozen=True)
class Trial:
    """One point of the grid, or a beginning of one.

    Attributes:
        index: its place among the recipe's trials, from 0.
        settings: the grid's fields and what each is here.
        seed: of everything random.
        steps: checked steps with the settings in place.
    """

    index: int
    settings: dict[str, Any]
    seed: int
    steps: tuple[Step, ...]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file.
        overrides: ``key=value`` each: ``model=FOLDER``, ``data.path=FILE``,
            ``prune.scope=global``, ``grid.prune.sparsity=[0,0.5]``; the value is YAML.

    Raises:
        ConfigError: no such file, no YAML, or anything in it that does not fit.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"recipe {str(path)!r} cannot be read ({error.strerror}); "
            f"write the path of a YAML file or a name that 'hfcompress recipes' lists"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"recipe {str(path)!r} is no text file") from None
    data = parse_yaml(text, path.name)
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path.name} must be a mapping with model, data and steps, "
            f"not {type(data).__name__ if data is not None else 'an empty file'}"
        )
    data.setdefault("name", path.stem)
    for override in overrides:
        data = _override(data, override)
    return parse_recipe(data, path.name)


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check plain data as a recipe.

    Raises:
        ConfigError: anything that does not fit.
    """
    return Recipe.parse(data, where)


def parse_steps(steps: Sequence[Any]) -> tuple[Step, ...]:
    """Check a list of ``{name: fields}`` mappings.

    Raises:
        ConfigError: an unknown step or field, with its place in the list.
    """
    _check_names(steps)
    parsed = []
    for index, item in enumerate(steps):
        ((name, fields),) = item.items()
        config = STEP_CONFIGS[name].parse(fields or {}, f"steps[{index}].{name}")
        parsed.append(Step(name, config))
        if isinstance(config, QuantizationConfig) and index < len(steps) - 1:
            raise ConfigError(
                f"steps[{index}].quantize leaves no torch model for the steps after it; "
                f"write it last"
            )
    return tuple(parsed)


def _check_names(steps: Sequence[Any]) -> None:
    for index, item in enumerate(steps):
        if not isinstance(item, Mapping) or len(item) != 1:
            raise ConfigError(
                f"steps[{index}] must be one step and its fields, such as "
                f"'prune: {{sparsity: 0.5}}', not {item!r}"
            )
        name = next(iter(item))
        if name not in STEP_CONFIGS:
            hint = nearest(str(name), list(STEP_CONFIGS))
            raise ConfigError(f"steps[{index}]: there is no step {name!r}{hint}")


def expand(recipe: Recipe) -> list[Trial]:
    """Every trial of a recipe: one where there is no grid; with ``measure.every_step`` the dense
    model and what each step leaves.

    Raises:
        ConfigError: a grid field that does not exist, or a value that does not fit.
    """
    trials = _points(recipe)
    return _every_step(recipe, trials) if recipe.measure.every_step else trials


def _every_step(recipe: Recipe, trials: Sequence[Trial]) -> list[Trial]:
    """The beginnings of trials as trials of their own, those that several share once.

    A first step that fine-tunes makes the dense model; what it starts from is no result.
    """
    found: dict[str, Trial] = {}
    for trial in trials:
        first = bool(trial.steps) and type(trial.steps[0].config) is FinetuneConfig
        for count in range(int(first), len(trial.steps) + 1):
            settings = {
                field: value
                for field, value in trial.settings.items()
                if field == "seed" or _locate(field, recipe.steps, "grid.")[0] < count
            }
            key = repr((count, settings))
            if key not in found:
                found[key] = Trial(len(found), settings, trial.seed, trial.steps[:count])
    return list(found.values())


def _points(recipe: Recipe) -> list[Trial]:
    """Every point of the grid."""
    _check_names(recipe.steps)
    if not recipe.grid:
        return [Trial(0, {}, recipe.seed, parse_steps(recipe.steps))]
    trials: list[Trial] = []
    for grid in recipe.grid:
        for field, values in grid.items():
            if not values:
                raise ConfigError(f"grid.{field} is empty; give at least one value")
        for values in itertools.product(*grid.values()):
            settings = dict(zip(grid, values, strict=True))
            trials.append(_trial(recipe, len(trials), settings))
    return trials


def _trial(recipe: Recipe, index: int, settings: dict[str, Any]) -> Trial:
    steps: Any = [dict(item) if isinstance(item, Mapping) else item for item in recipe.steps]
    seed = recipe.seed
    for field, value in settings.items():
        if field == "seed":
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"grid.seed holds {value!r}; give whole numbers from 0")
            seed = value
            continue
        place, name, inner = _locate(field, steps, "grid.")
        steps[place] = {name: _with(steps[place][name] or {}, inner.split("."), value)}
    try:
        return Trial(index, settings, seed, parse_steps(steps))
    except ConfigError as error:
        if not settings:
            raise
        point = ", ".join(f"{field}={value!r}" for field, value in settings.items())
        raise ConfigError(f"{error} (at the grid's {point})") from None


def _locate(field: str, steps: Sequence[Any], where: str) -> tuple[int, str, str]:
    """Which step a dotted field names: (place, step name, field inside the step).

    Raises:
        ConfigError: no such step, several of them, or no such field.
    """
    names = [next(iter(item)) if isinstance(item, Mapping) and item else "" for item in steps]
    indexed = _INDEXED.fullmatch(field)
    if indexed:
        place, rest = int(indexed[1]), indexed[2]
        if place >= len(steps):
            raise ConfigError(f"{where}{field}: there are {len(steps)} steps, counted from 0")
        inner = rest.removeprefix(f"{names[place]}.")
    else:
        name, _, inner = field.partition(".")
        places = [index for index, known in enumerate(names) if known == name]
        if not places or not inner:
            known = [*dict.fromkeys(f"{item}.…" for item in names if item), "seed"]
            raise ConfigError(
                f"{where}{field} names no field; write STEP.FIELD or seed, where STEP is one of "
                f"the recipe's steps ({', '.join(known)})"
            )
        if len(places) > 1:
            raise ConfigError(
                f"{where}{field} could mean several steps; write steps[{places[0]}].{field}"
            )
        place = places[0]
    fields = STEP_CONFIGS[names[place]].model_fields if names[place] in STEP_CONFIGS else {}
    first = inner.split(".")[0]
    if fields and first not in fields:
        hint = nearest(first, list(fields))
        raise ConfigError(f"{where}{field}: {names[place]} has no field {first!r}{hint}")
    return place, names[place], inner


def _with(data: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested plain data with one value changed."""
    inner = value if len(path) == 1 else _with(data.get(path[0]) or {}, path[1:], value)
    return {**data, path[0]: inner}


def _restore(data: dict[str, Any], written: Mapping[str, Any], path: Sequence[str]) -> None:
    """Put one value of nested plain data back to what was written, or take it out."""
    if len(path) > 1 and isinstance(data.get(path[0]), dict):
        _restore(data[path[0]], written.get(path[0]) or {}, path[1:])
    elif path[0] in written:
        data[path[0]] = written[path[0]]
    else:
        data.pop(path[0], None)


def _override(data: dict[str, Any], override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: write key=value")
    value = parse_yaml(text, f"--set {key}")
    head = key.split(".")[0]
    if key.startswith("grid."):
        return {**data, "grid": _override_grid(data.get("grid") or {}, key[5:], value)}
    steps = list(data.get("steps") or [])
    if head not in Recipe.model_fields or key.startswith("steps["):
        place, name, inner = _locate(key, steps, "--set ")
        steps[place] = {name: _with(steps[place][name] or {}, inner.split("."), value)}
        return {**data, "steps": steps}
    path = key.split(".")
    if len(path) > 1 and isinstance(data.get(head), str):
        data = {**data, head: {"path": data[head]}}
    if len(path) > 1 and not isinstance(data.get(head) or {}, dict):
        raise ConfigError(f"--set {key}: {head} has no fields")
    return _with(data, path, value)


def _override_grid(grid: Any, field: str, value: Any) -> Any:
    if isinstance(grid, list):
        return [{**part, field: value} for part in grid]
    return {**grid, field: value}
