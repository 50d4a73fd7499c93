"""A recipe's grid as trials: the same steps, each time with other values in some fields."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfcompress.config import Config, nearest, owner_of, shown
from hfcompress.errors import ConfigError
from hfcompress.recipes.step_configs import (
    STEP_CONFIGS,
    FinetuneConfig,
    Step,
    check_names,
    parse_steps,
)
from hfcompress.recipes.yaml import parse_yaml
from hfcompress.utils import Fields

Steps = Sequence[Mapping[str, Any]]
"""``{name: fields}`` each, as a recipe writes them."""

Grid = Sequence[Mapping[str, Sequence[Any]]]
"""Dotted fields and the values of each; several grids follow each other."""


MAX_TRIALS = 10_000
"""Points that a grid may have."""


@dataclass(frozen=True)
class Trial:
    """One point of the grid, or a beginning of one.

    Attributes:
        index: its place among the recipe's trials, from 0.
        settings: the grid's fields and what each is here.
        seed: for sampling, initialisation and training.
        steps: checked steps with the settings in place.
        prefixes: content hashes of the model before the first step, after the first, ...; empty
            until model and data are known.
        row_hash: content hash that names the trial's row; empty likewise.
    """

    index: int
    settings: Fields
    seed: int
    steps: tuple[Step, ...]
    prefixes: tuple[str, ...] = ()
    row_hash: str = ""

    @property
    def dense_place(self) -> int:
        """How many steps precede the first that compresses; all, where none does."""
        places = (place for place, step in enumerate(self.steps) if step.config.compresses)
        return next(places, len(self.steps))

    @property
    def dense_prefix(self) -> str:
        """Content hash of the model that the trial is compared with."""
        return self.prefixes[self.dense_place]

    def trains_after(self, place: int) -> bool:
        """Whether a step after the first ``place`` trains."""
        return any(step.config.trains for step in self.steps[place:])


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
    _check_size(grid)
    trials: list[Trial] = []
    for part in grid:
        for values in itertools.product(*part.values()):
            settings = dict(zip(part, values, strict=True))
            trials.append(_trial(steps, len(trials), settings, seed))
    return trials


def _check_size(grid: Grid) -> None:
    """Refuse empty lists of values and more than `MAX_TRIALS` points, before any is built."""
    count = 0
    for part in grid:
        for field, values in part.items():
            if not values:
                raise ConfigError(f"grid.{field} is empty; give at least one value")
        count += math.prod(len(values) for values in part.values())
    if count > MAX_TRIALS:
        raise ConfigError(f"the grid has {count:,} points; write {MAX_TRIALS:,} at most")


def beginnings(steps: Steps, trials: Sequence[Trial]) -> list[Trial]:
    """The beginnings of trials as trials of their own, those that several share once.

    A first step that fine-tunes makes the dense model; the model it starts from gets no row.
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


def _trial(given: Steps, index: int, settings: Fields, seed: int) -> Trial:
    steps = [dict(item) if isinstance(item, Mapping) else item for item in given]
    for field, value in settings.items():
        if field == "seed":
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"grid.seed contains {shown(value)}; give whole numbers from 0")
            seed = value
            continue
        place, name, inner = locate(field, steps, "grid.")
        fields = steps[place][name]
        if fields is not None and not isinstance(fields, Mapping):
            parse_steps(given)  # says what is wrong with it
        steps[place] = {name: with_value(fields or {}, inner.split("."), value)}
    try:
        return Trial(index, settings, seed, parse_steps(steps))
    except ConfigError as error:
        if not settings:
            raise
        point = ", ".join(f"{field}={shown(value)}" for field, value in settings.items())
        raise ConfigError(f"{error} (at the grid's {point})") from None


_INDEXED = re.compile(r"steps\[(\d+)\]\.(.+)")


def locate(
    field: str, steps: Steps, where: str, others: Collection[str] = ()
) -> tuple[int, str, str]:
    """Which step a dotted field names: (place, step name, field inside the step).

    Args:
        field: ``STEP.FIELD`` or ``steps[PLACE].FIELD``.
        steps: of a recipe.
        where: the beginning of an error's sentence.
        others: further names that may have been meant.

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
            hint = nearest(name, [*filter(None, names), *others])
            raise ConfigError(
                f"{where}{field} names no field; write STEP.FIELD or seed, where STEP is one of "
                f"the recipe's steps ({', '.join(known)}){hint if hint.endswith('?') else ''}"
            )
        if len(places) > 1:
            raise ConfigError(
                f"{where}{field} could mean several steps; write steps[{places[0]}].{field}"
            )
        place = places[0]
    config = STEP_CONFIGS.get(names[place])
    first = inner.split(".")[0]
    if config and first not in config.model_fields and first not in config.former_fields:
        hint = nearest(first, list(config.model_fields))
        raise ConfigError(f"{where}{field}: {names[place]} has no field {first!r}{hint}")
    return place, names[place], inner


def with_value(data: Mapping[str, object], path: Sequence[str], value: object) -> Fields:
    """A copy of nested plain data with one value changed."""
    inner = value
    if len(path) > 1:
        inner = with_value(_fields_given(data.get(path[0])), path[1:], value)
    return {**_fields_given(data), path[0]: inner}


def restore(
    data: Fields, written: Mapping[str, object], path: Sequence[str], config: type[Config]
) -> None:
    """Put one field of a step's plain data back to what was written, or take it out.

    Args:
        data: every field of the step, by current names; changed in place.
        written: the step as a recipe gives it.
        path: the field's, of which the last name may be a former one.
        config: the step's class.
    """
    owner = owner_of(config, tuple(path[:-1]))
    assert issubclass(owner, Config)
    for current in owner.former_fields.get(path[-1], ()):
        _restore(data, written, [*path[:-1], *current.split(".")])
    _restore(data, written, path)


def ambiguous_fields(written: Mapping[str, object], config: type[Config]) -> Iterator[list[str]]:
    """Paths of former names in a step's plain data whose meaning another field decides.

    Args:
        written: the step as a recipe gives it.
        config: the step's class.
    """
    for name, value in written.items():
        if len(config.former_fields.get(name, ())) > 1:
            yield [name]
        owner = owner_of(config, (name,))
        if isinstance(value, Mapping) and owner is not config and issubclass(owner, Config):
            yield from ([name, *rest] for rest in ambiguous_fields(value, owner))


def _restore(data: Fields, written: Mapping[str, object], path: Sequence[str]) -> None:
    if len(path) > 1 and isinstance(data.get(path[0]), dict):
        _restore(data[path[0]], _fields_given(written.get(path[0])), path[1:])
    elif path[0] in written:
        data[path[0]] = written[path[0]]
    else:
        data.pop(path[0], None)


def _fields_given(data: object) -> Mapping[str, object]:
    """Nested data as a mapping; of a config the fields that were given."""
    if isinstance(data, Config):
        return {name: getattr(data, name) for name in data.model_fields_set}
    if data is not None and not isinstance(data, Mapping):
        raise ConfigError(f"{shown(data)} has no fields to change; write a mapping in its place")
    return {} if data is None else data


def apply_override(data: Fields, override: str, known: Collection[str]) -> tuple[Fields, list[str]]:
    """Plain data with one field changed, and the grid's fields that it takes the place of.

    Args:
        data: of a recipe, as YAML gives it; left as it is.
        override: ``key=value``; the value is YAML.
        known: the recipe's own fields; other keys name fields of steps.

    Raises:
        ConfigError: no ``key=value``, no YAML, a key that names nothing, or one inside of a field
            that the grid varies.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: write key=value")
    value = parse_yaml(text, f"--set {key}")
    head = key.split(".")[0]
    if key.startswith("grid."):
        return {**data, "grid": _override_grid(data.get("grid") or {}, key[5:], value)}, []
    if head not in known or key.startswith("steps["):
        steps = list(data.get("steps") or [])
        check_names(steps)
        place, name, inner = locate(key, steps, "--set ", known)
        steps[place] = {name: with_value(steps[place][name] or {}, inner.split("."), value)}
        return _without_grid_field({**data, "steps": steps}, key)
    path = key.split(".")
    if len(path) > 1 and isinstance(data.get(head), str):
        data = {**data, head: {"path": data[head]}}
    if len(path) > 1 and not isinstance(data.get(head) or {}, dict):
        raise ConfigError(f"--set {key}: {head} has no fields")
    changed = with_value(data, path, value)
    return _without_grid_field(changed, key) if key == "seed" else (changed, [])


def _override_grid(grid: object, field: str, value: object) -> object:
    changed = [{**part, field: value} for part in _grid_parts(grid)]
    return changed if isinstance(grid, list) else changed[0]


def _grid_parts(grid: object) -> list[Fields]:
    """The mappings of a grid as YAML gives it.

    Raises:
        ConfigError: something else than one or several mappings.
    """
    given = grid if isinstance(grid, list) else [grid]
    parts = [part for part in given if isinstance(part, dict)]
    if len(parts) < len(given):
        raise ConfigError(f"grid must be a mapping of fields to lists, not {shown(grid)}")
    return parts


def _without_grid_field(data: Fields, key: str) -> tuple[Fields, list[str]]:
    """The recipe's plain data whose grid does not vary what ``--set key`` has set, and the
    grid's fields that went.

    Raises:
        ConfigError: the grid varies a field that the key is a part of.
    """
    grid, steps = data.get("grid"), list(data.get("steps") or [])
    if not grid:
        return data, []
    own = _current_paths(key, steps)
    replaced: list[str] = []
    for field in dict.fromkeys(field for part in _grid_parts(grid) for field in part):
        other = _current_paths(str(field), steps)
        if any(_begins_with(theirs, mine) for theirs in other for mine in own):
            replaced.append(str(field))
        elif any(_begins_with(mine, theirs) for theirs in other for mine in own):
            raise ConfigError(f"--set {key}: the grid varies {field}; use --set grid.{field}=[...]")
    parts = [
        {field: values for field, values in part.items() if field not in replaced}
        for part in _grid_parts(grid)
    ]
    kept = [part for place, part in enumerate(parts) if part not in parts[:place]]
    return {**data, "grid": [] if kept == [{}] else kept}, replaced


def _current_paths(key: str, steps: Steps) -> list[list[str]]:
    """Where a dotted field of the grid or of ``--set`` is, as paths from the step's place on;
    several where a former name stands for several fields."""
    if key == "seed":
        return [["seed"]]
    place, name, inner = locate(key, steps, "grid.")
    *path, last = inner.split(".")
    owner = owner_of(STEP_CONFIGS[name], tuple(path))
    former = owner.former_fields.get(last, ()) if issubclass(owner, Config) else ()
    names = [current.split(".") for current in former] or [[last]]
    return [[f"steps[{place}]", *path, *current] for current in names]


def _begins_with(path: Sequence[str], start: Sequence[str]) -> bool:
    return list(path[: len(start)]) == list(start)
