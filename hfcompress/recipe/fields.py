"""Dotted names of fields in a recipe: ``prune.sparsity``, ``steps[1].prune.sparsity``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hfcompress.config import nearest
from hfcompress.errors import ConfigError
from hfcompress.recipes.step_configs import STEP_CONFIGS

_INDEXED = re.compile(r"steps\[(\d+)\]\.(.+)")


def locate(field: str, steps: Sequence[Any], where: str) -> tuple[int, str, str]:
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


def with_value(data: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested plain data with one value changed."""
    inner = value if len(path) == 1 else with_value(data.get(path[0]) or {}, path[1:], value)
    return {**data, path[0]: inner}


def restore(data: dict[str, Any], written: Mapping[str, Any], path: Sequence[str]) -> None:
    """Put one value of nested plain data back to what was written, or take it out."""
    if len(path) > 1 and isinstance(data.get(path[0]), dict):
        restore(data[path[0]], written.get(path[0]) or {}, path[1:])
    elif path[0] in written:
        data[path[0]] = written[path[0]]
    else:
        data.pop(path[0], None)
