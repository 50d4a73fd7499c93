"""``hfcompress sensitivity``: one layer at a time, accuracy against layer and sparsity."""

from __future__ import annotations

from pathlib import Path

from hfcompress.errors import ConfigError
from hfcompress.models.loading import load_model
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.sensitivity import SPARSITIES
from hfcompress.pruning.targets import select_targets
from hfcompress.recipes.schema import Recipe, expand
from hfcompress.report.csv_table import write_csv
from hfcompress.report.heatmap import draw_heatmap
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import check_trust
from hfcompress.sweep.run import SweepResult, run
from hfcompress.tasks.registry import find_task
from hfcompress.utils import Progress, Row, atomic_write


def run_sensitivity(
    recipe: Recipe,
    output: str | Path,
    progress: Progress | None = None,
    cache: StepCache | None = None,
    trust_remote_code: bool = False,
    wait: bool = False,
    retry_failed: bool = True,
    fail_fast: bool = False,
) -> SweepResult:
    """Prune each target layer alone at each sparsity of the recipe's grid, and draw a heatmap.

    Args:
        recipe: its last step is ``prune``; the grid's ``prune.sparsity`` names the sparsities
            (`SPARSITIES` by default), other grid fields are not taken.
        output: the run's folder; gets ``heatmap.png`` beside the rows. Run again, it finishes
            what is missing.
        trust_remote_code, wait, retry_failed, fail_fast: as `run`.

    Returns:
        One row for each layer and sparsity; ``settings["prune.targets"]`` names the layer.

    Raises:
        ConfigError: the recipe does not end in one prune step, or its grid varies other fields.
        BadInputError: as `run`.
    """
    check_trust(recipe, trust_remote_code)
    plan = layers_recipe(recipe)
    layers = [name for (name,) in plan.grid[0]["prune.targets"]]
    sparsities = plan.grid[0]["prune.sparsity"]
    result = run(
        plan, output, progress, cache, draw=False, trust_remote_code=trust_remote_code, wait=wait,
        retry_failed=retry_failed, fail_fast=fail_fast,
    )  # fmt: skip
    folder = Path(output)
    if result.rows:
        write_csv(result.rows, folder / "results.csv")
        atomic_write(folder / "heatmap.png", _heatmap(result.rows, layers, sparsities))
    return result


def layers_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe whose grid prunes each target layer alone at each sparsity.

    Raises:
        ConfigError: as `run_sensitivity`.
    """
    layers, sparsities = _layers(recipe), _sparsities(recipe)
    grid = {"prune.targets": tuple([name] for name in layers), "prune.sparsity": sparsities}
    steps = (*recipe.steps[:-1], {"prune": {**recipe.steps[-1]["prune"], "sparsity": 0.5}})
    measure = recipe.measure.replace(every_step=False)
    return recipe.replace(grid=(grid,), steps=steps, measure=measure)


def _layers(recipe: Recipe) -> list[str]:
    steps = [next(iter(step)) for step in recipe.steps]
    if steps.count("prune") != 1 or steps[-1] != "prune":
        raise ConfigError("sensitivity takes a recipe whose last step, and no other, is prune")
    config = expand(recipe)[0].steps[-1].config
    assert isinstance(config, PruningConfig)
    model = load_model(recipe.model, find_task(recipe.task)).model
    return list(select_targets(model, config.targets, config.exclude))


def _sparsities(recipe: Recipe) -> tuple[float, ...]:
    fields = {field for grid in recipe.grid for field in grid}
    if fields - {"prune.sparsity"} or len(recipe.grid) > 1:
        others = ", ".join(sorted(fields - {"prune.sparsity"})) or "several parts"
        raise ConfigError(f"sensitivity varies prune.sparsity only; take {others} out of the grid")
    return recipe.grid[0]["prune.sparsity"] if recipe.grid else SPARSITIES


def _heatmap(rows: list[Row], layers: list[str], sparsities: tuple[float, ...]) -> bytes:
    found = {
        (row["settings"]["prune.targets"][0], float(row["settings"]["prune.sparsity"])): row
        for row in rows
    }
    values = [
        [_value(found.get((layer, float(sparsity)))) for sparsity in sparsities] for layer in layers
    ]
    dense = rows[0]["value"] + rows[0]["drop"]
    return draw_heatmap(layers, [float(s) for s in sparsities], values, rows[0]["metric"], dense)


def _value(row: Row | None) -> float | None:
    return None if row is None else float(row["value"])
