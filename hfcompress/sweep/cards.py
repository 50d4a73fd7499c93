"""The model card of a trial's model, whatever form it is saved in."""

from __future__ import annotations

from pathlib import Path

from hfcompress.errors import SourceError
from hfcompress.measure.environment import environment
from hfcompress.models.hub import resolve
from hfcompress.recipes.yaml import dump_yaml
from hfcompress.report.card import CardSource
from hfcompress.sweep.experiment import Experiment


def card_source(experiment: Experiment, steps: list[dict[str, object]] | None = None) -> CardSource:
    """Return what the models of an experiment are made from, for their cards.

    Args:
        experiment: names model, data and recipe.
        steps: of the one trial; the recipe's own, with its grid, by default.
    """
    recipe, data = experiment.recipe, experiment.recipe.data
    shown = recipe if steps is None else recipe.replace(steps=steps, grid=())
    fields = {
        key: value for key, value in shown.to_dict().items()
        if value not in (None, (), [], "", {}) and key != "save_models"
    }  # fmt: skip
    return CardSource(
        base_model=_hub_name(recipe.model.path, "model"),
        task=experiment.task.name,
        dataset=_hub_name(data.path, "data"),
        dataset_config=data.name,
        split=data.eval if _hub_name(data.path, "data") else None,
        license_name=experiment.loaded.license,
        recipe_text=dump_yaml(_without_local_paths(fields)),
        environment=environment(),
    )


def _hub_name(path: str | None, what: str) -> str | None:
    """The name on the hub; None for what lies on this machine or was given in memory."""
    try:
        source = None if path is None else resolve(path, what)
    except SourceError:
        return None
    return source.location if source is not None and source.kind == "hub" else None


def _without_local_paths(fields: dict[str, object]) -> dict[str, object]:
    """The recipe with the last part alone of paths on this machine: a card is published."""
    found = dict(fields)
    for key in ("model", "data"):
        part = found.get(key)
        path = part.get("path") if isinstance(part, dict) else None
        if isinstance(part, dict) and isinstance(path, str) and Path(path).expanduser().exists():
            found[key] = {**part, "path": Path(path).name}
    return found
