"""Write docs/config.md: every field of every config, from the fields' own descriptions.

python docs/make_config.py
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hfcompress.benchmarking.config import BenchConfig
from hfcompress.config import Config
from hfcompress.recipes.schema import Recipe
from hfcompress.recipes.step_configs import STEP_CONFIGS
from hfcompress.search.target import CompressTarget

COMMAND = "python docs/make_config.py"
PAGE = Path(__file__).resolve().with_name("config.md")
_HEAD = f"""# Every field of every config

`{COMMAND}` writes this page from the field descriptions in the code; a test fails
when it is out of date. A recipe and a Python call take the same configs: the YAML
`prune: {{sparsity: 0.5}}` is `PruningConfig(sparsity=0.5)`. A field without a default is required.
`null` in YAML is `None` in Python. How a recipe is put together: [recipes.md](recipes.md).
"""
_ANY = "any value"
_PLAIN = {str: "text", int: "int", float: "float", bool: "true or false", Any: _ANY, object: _ANY}
_BOUNDS = {"gt": "> ", "ge": ">= ", "lt": "< ", "le": "<= ", "min_length": "length >= "}


def page() -> str:
    """The text of docs/config.md."""
    steps = tuple(STEP_CONFIGS.values())
    outside = (CompressTarget, BenchConfig)
    parts = [_HEAD, _contents(), "## A recipe\n", _section(Recipe), "## Steps\n"]
    parts += [_section(config, step) for step, config in STEP_CONFIGS.items()]
    nested = [config for config in _nested((Recipe, *steps)) if config not in (Recipe, *steps)]
    parts += ["## Configs inside other configs\n", *(_section(config) for config in nested)]
    parts += ["## Outside recipes\n", *(_section(config) for config in outside)]
    return "\n".join(parts)


def _contents() -> str:
    rows = [f"| `{step}` | {_link(config)} |" for step, config in STEP_CONFIGS.items()]
    return "\n".join(["| step | its config |", "|---|---|", *rows, ""])


def _section(config: type[BaseModel], step: str = "") -> str:
    """A heading, the docstring's first paragraph and the table of one config."""
    paragraph = (config.__doc__ or "").strip().split("\n\n")[0]
    text = " ".join(re.sub(r"``(.+?)``", r"`\1`", paragraph).split())
    title, start = (f"Step `{step}`", f"`{config.__name__}`: ") if step else (config.__name__, "")
    lines = [f"### {title}", "", start + text, ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, info in config.model_fields.items():
        cells = (_type(info), _default(info), _escape(info.description or ""))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _nested(configs: Iterable[type[BaseModel]]) -> list[type[BaseModel]]:
    """Some configs and all that their fields can hold, in the order of their mention."""
    found: list[type[BaseModel]] = []
    waiting = list(configs)
    while waiting:
        config = waiting.pop(0)
        if config not in found:
            found.append(config)
            for info in config.model_fields.values():
                waiting += _configs_in(info.annotation)
    return found


def _configs_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _configs_in(part)


def _type(info: FieldInfo) -> str:
    """A field's type and range as a table's cell."""
    bounds = [
        f"{sign}{value}"
        for constraint in info.metadata
        for name, sign in _BOUNDS.items()
        if (value := getattr(constraint, name, None)) is not None
    ]
    return ", ".join([_annotation(info.annotation), *bounds])


def _annotation(annotation: Any) -> str:
    """A type as words: ``tuple[int, ...] | None`` is ``list of int``; None shows as a default."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Annotated:
        return _annotation(parts[0])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_annotation(part) for part in parts if part is not type(None))
    if origin is tuple:
        return f"list of {_annotation(parts[0])}"
    if origin is dict:
        return f"mapping of {_annotation(parts[0])} to {_annotation(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _link(annotation)
    raise TypeError(f"cannot describe the type {annotation!r}; extend docs/make_config.py")


def _link(config: type[BaseModel]) -> str:
    """A link to the heading of a config; a step's heading has the step's name."""
    steps = [step for step, known in STEP_CONFIGS.items() if known is config]
    anchor = f"step-{steps[0]}" if steps else config.__name__.lower()
    return f"[{config.__name__}](#{anchor})"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return ""
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Config):
        given = value.model_dump(exclude_defaults=True)
        return f"`{json.dumps(given)}`" if given else "its defaults"
    return f"`{json.dumps(value)}`"


def _escape(text: str) -> str:
    """Text that is safe in a table's cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
