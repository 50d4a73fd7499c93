"""``--set KEY=VALUE``: one field of a recipe's plain data changed before it is checked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hfcompress.errors import ConfigError
from hfcompress.recipe.fields import locate, with_value
from hfcompress.recipes.yaml import parse_yaml


def apply_override(data: dict[str, Any], override: str, known: Collection[str]) -> dict[str, Any]:
    """Plain data with one field changed.

    Args:
        data: of a recipe, as YAML gives it; left as it is.
        override: ``key=value``; the value is YAML.
        known: the recipe's own fields; other keys name fields of steps.

    Raises:
        ConfigError: no ``key=value``, no YAML, or a key that names nothing.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: write key=value")
    value = parse_yaml(text, f"--set {key}")
    head = key.split(".")[0]
    if key.startswith("grid."):
        return {**data, "grid": _override_grid(data.get("grid") or {}, key[5:], value)}
    steps = list(data.get("steps") or [])
    if head not in known or key.startswith("steps["):
        place, name, inner = locate(key, steps, "--set ")
        steps[place] = {name: with_value(steps[place][name] or {}, inner.split("."), value)}
        return {**data, "steps": steps}
    path = key.split(".")
    if len(path) > 1 and isinstance(data.get(head), str):
        data = {**data, head: {"path": data[head]}}
    if len(path) > 1 and not isinstance(data.get(head) or {}, dict):
        raise ConfigError(f"--set {key}: {head} has no fields")
    return with_value(data, path, value)


def _override_grid(grid: Any, field: str, value: Any) -> Any:
    if isinstance(grid, list):
        return [{**part, field: value} for part in grid]
    return {**grid, field: value}
