"""A recipe's grid as trials: the same steps, each time with other values in some fields."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfcompress.errors import ConfigError
from hfcompress.recipe.fields import locate, with_value
from hfcompress.recipe.finetune_config import FinetuneConfig
from hfcompress.recipes.step_configs import Step, check_names, parse_steps

Steps = Sequence[Mapping[str, Any]]
Grid = Sequence[Mapping[str, Sequence[Any]]]


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


def points(steps: Steps, grid: Grid, seed: int) -> list[Trial]:
    """Every point of the grid; one where there is none.

    Args:
        steps: ``{name: fields}`` each.
        grid: dotted fields and the values of each; several grids follow each other.
        seed: where the grid names none.

    Raises:
        ConfigError: a field that does not exist, or a value that does not fit.
    """
    check_names(steps)
    if not grid:
        return [Trial(0, {}, seed, parse_steps(steps))]
    trials: list[Trial] = []
    for part in grid:
        for field, values in part.items():
            if not values:
                raise ConfigError(f"grid.{field} is empty; give at least one value")
        for values in itertools.product(*part.values()):
            settings = dict(zip(part, values, strict=True))
            trials.append(_trial(steps, len(trials), settings, seed))
    return trials


def beginnings(steps: Steps, trials: Sequence[Trial]) -> list[Trial]:
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
                if field == "seed" or locate(field, steps, "grid.")[0] < count
            }
            key = repr((count, settings))
            if key not in found:
                found[key] = Trial(len(found), settings, trial.seed, trial.steps[:count])
    return list(found.values())


def _trial(given: Steps, index: int, settings: dict[str, Any], seed: int) -> Trial:
    steps: Any = [dict(item) if isinstance(item, Mapping) else item for item in given]
    for field, value in settings.items():
        if field == "seed":
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"grid.seed holds {value!r}; give whole numbers from 0")
            seed = value
            continue
        place, name, inner = locate(field, steps, "grid.")
        steps[place] = {name: with_value(steps[place][name] or {}, inner.split("."), value)}
    try:
        return Trial(index, settings, seed, parse_steps(steps))
    except ConfigError as error:
        if not settings:
            raise
        point = ", ".join(f"{field}={value!r}" for field, value in settings.items())
        raise ConfigError(f"{error} (at the grid's {point})") from None
