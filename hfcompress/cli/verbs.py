"""``prune``, ``shrink``, ``distill`` and ``quantize`` on the command line: recipes of one step."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from hfcompress.utils import Device

if TYPE_CHECKING:
    from hfcompress.config import StepConfig
    from hfcompress.recipes.schema import Recipe

VERBS = {
    "prune": "set the weights to zero that matter least",
    "shrink": "remove heads, neurons or channels, so that the model is smaller and faster",
    "distill": "train a small student on the model's answers",
    "quantize": "int8 for an engine, with what deploys it",
}
# What every verb has; fields of the same name are written behind --set.
_COMMON = {"model", "data", "set", "task", "output", "seed", "device", "dry_run"}


def step_config(verb: str) -> type[StepConfig]:
    """Return the config class of a verb's step."""
    from hfcompress.recipes.step_configs import STEP_CONFIGS

    return STEP_CONFIGS[verb]


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that trains or measures; they are a recipe's fields."""
    parser.add_argument("--seed", type=int, metavar="N", help="of everything random (default 0)")
    parser.add_argument(
        "--device", choices=get_args(Device),
        help="where models train and predict (default: a GPU that is there trains)",
    )  # fmt: skip


def run_overrides(options: argparse.Namespace) -> list[str]:
    """Return ``--set``, ``--seed`` and ``--device`` of a command line as overrides of a recipe."""
    given = {name: getattr(options, name, None) for name in ("seed", "device")}
    return [
        *options.set,
        *(f"{name}={value}" for name, value in given.items() if value is not None),
    ]


def add_verb(parser: argparse.ArgumentParser, verb: str, with_fields: bool) -> None:
    """Add a verb's arguments.

    Args:
        parser: of the verb's command.
        verb: its name.
        with_fields: also an option for each field of its config; importing that takes long.
    """
    parser.add_argument("model", metavar="MODEL", help="hub name, folder or pkg://PACKAGE/PATH")
    parser.add_argument(
        "--data", metavar="DATA", help="hub name, file or folder: calibrates, trains and measures"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[],
        help="any other field of a recipe: data.text=sentence, measure.metric=f1",
    )  # fmt: skip
    parser.add_argument("--task", help="default: what the model was saved for")
    add_run_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help=f"folder (default: runs/{verb}-MODEL)")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the recipe of this command and stop"
    )
    if not with_fields:
        return
    fields = parser.add_argument_group(f"fields of {verb}")
    for name, field in step_config(verb).model_fields.items():
        if name not in _COMMON:
            is_flag = "bool" in str(field.annotation)
            fields.add_argument(
                f"--{name.replace('_', '-')}", dest=f"field.{name}", metavar=name.upper(),
                help=str(field.description).replace("%", "%%"),
                nargs="?" if is_flag else None, const="true" if is_flag else None,
            )  # fmt: skip


def verb_recipe(verb: str, options: Mapping[str, object]) -> Recipe:
    """Return the recipe of one step that a command line stands for.

    Raises:
        ConfigError: no data, or a field that does not fit.
        SourceError: the model is not there.
    """
    from hfcompress.errors import ConfigError
    from hfcompress.recipes.grid import apply_override
    from hfcompress.recipes.schema import Recipe
    from hfcompress.recipes.yaml import fields_of_options
    from hfcompress.tasks.registry import task_of_checkpoint

    model = str(options["model"])
    overrides = options["set"]
    assert isinstance(overrides, list)
    if options["data"] is None and not any(item.startswith("data") for item in overrides):
        raise ConfigError(f"{verb} calibrates and measures on rows; add --data DATA")
    given = {
        name.removeprefix("field."): value
        for name, value in options.items()
        if name.startswith("field.")
    }
    fields = fields_of_options(step_config(verb), given)
    step_config(verb).from_dict(fields, verb)  # before the model is looked up
    data: dict[str, object] = {
        "name": f"{verb}-{Path(model).name.partition('@')[0]}",
        "model": model,
        "task": options["task"] or task_of_checkpoint(model).name,
        "steps": [{verb: fields}],
        "seed": options["seed"] or 0,
        "device": options["device"],
        "save_models": True,
    }
    if options["data"] is not None:
        data["data"] = {"path": options["data"]}
    for override in overrides:
        data, _ = apply_override(data, override, Recipe.model_fields)
    return Recipe.from_dict(data, verb)
