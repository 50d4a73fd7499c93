"""``run``: a recipe -> rows. Trials share their common prefix; finished ones are not repeated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from transformers import PreTrainedModel

from hfcompress.errors import HfcompressError, OutputError
from hfcompress.measure.environment import environment
from hfcompress.measure.weights import analyze_weight_distribution
from hfcompress.recipe.cache import StepCache
from hfcompress.recipe.hashing import content_hash
from hfcompress.recipe.progress import Progress
from hfcompress.recipe.schema import Recipe, Trial, expand, load_recipe
from hfcompress.recipe.store import RunDirectory
from hfcompress.recipe.trial import Runner
from hfcompress.recipe.workbench import Workbench, prepare
from hfcompress.recipe.yaml import dump_yaml
from hfcompress.report.write import write_report

Row = dict[str, Any]


@dataclass(frozen=True)
class SweepResult(Sequence[Row]):
    """What a run gave: a sequence of its rows, and what else there is to say.

    Attributes:
        rows: one for each trial, in the grid's order.
        failures: trials that failed on the way, as ``(settings, reason)``; the same command
            tries them again.
        output: the run's folder; None where nothing was to be written.
    """

    rows: list[Row]
    failures: list[tuple[dict[str, Any], str]]
    output: Path | None

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self.rows[index]


def run(
    recipe: Recipe,
    output: str | Path | None = None,
    progress: Progress | None = None,
    cache: StepCache | None = None,
    draw: bool = True,
) -> SweepResult:
    """Run a recipe; finish what is missing where the folder holds some of its rows.

    Args:
        recipe: from `load_recipe`, `parse_recipe` or ``Recipe(...)``.
        output: the run's folder (see `RunDirectory`); nothing is written where None.
        progress: is told what happens.
        cache: where results of training steps are kept.
        draw: write table, curves and page at the end.

    Raises:
        BadInputError: anything the recipe names that does not fit, before anything is written.
    """
    progress = progress or Progress()
    store = None if output is None else RunDirectory(Path(output))
    bench = prepare(recipe, progress, cache or StepCache())
    hashes = {bench.row_hash(trial): trial for trial in bench.trials}
    rows = {row["hash"]: row for row in (store.claim(hashes) if store else [])}
    for note in store.notes if store else []:
        progress.note(note)
    pending = [trial for key, trial in hashes.items() if key not in rows]
    if store is not None:
        store.write_text("recipe.yaml", dump_yaml(recipe.plain()))
        if pending or store.read_json("environment.json") is None:
            store.write_json("environment.json", environment())
    failures = []
    progress.sweep(len(rows), len(hashes))
    for row, failure in _run_all(bench, pending, store):
        if row is not None:
            rows[row["hash"]] = row
            progress.row(row)
        else:
            failures.append(failure)
        progress.sweep(len(rows), len(hashes))
    ordered = _ordered(rows.values(), recipe)
    if store is not None and draw:
        report(store.path)
    return SweepResult(ordered, failures, None if store is None else store.path)


def _ordered(rows: Iterable[Row], recipe: Recipe) -> list[Row]:
    """Rows in the grid's order, which may have grown since some of them were written."""
    places = {json.dumps(trial.settings): trial.index for trial in expand(recipe)}
    found = [
        {**row, "index": places.get(json.dumps(row["settings"]), row["index"])} for row in rows
    ]
    return sorted(found, key=lambda row: int(row["index"]))


def _run_all(
    bench: Workbench, pending: list[Trial], store: RunDirectory | None
) -> Iterable[tuple[Row | None, tuple[dict[str, Any], str]]]:
    """Each pending trial's row, or why it failed; one failure does not stop the others."""
    runner = Runner(bench, pending)
    for trial in pending:
        try:
            row, model, logits, dense = runner.run(trial)
            if store is not None:
                _keep(runner, trial, row, model, store)
                store.save_predictions(row["hash"], logits)
                store.save_predictions(f"dense-{runner.dense_prefix(trial)}", dense)
                store.append(row)
            yield row, ({}, "")
        except (HfcompressError, RuntimeError, MemoryError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            bench.progress.note(f"trial {trial.index} failed: {reason[0]}")
            yield None, (trial.settings, reason[0])
        finally:
            runner.release(trial)


def _keep(
    runner: Runner, trial: Trial, row: Row, model: PreTrainedModel, store: RunDirectory
) -> None:
    """The touched layers' weight histogram beside the dense one's; the model where asked for."""
    bench = runner.bench
    weights = store.read_json("weights.json") or {}
    names = [layer["name"] for layer in row["layers"]] or None
    dense_key = f"dense-{content_hash([runner.dense_prefix(trial), names])}"
    if dense_key not in weights:
        dense = runner.dense_model(trial)
        weights[dense_key] = analyze_weight_distribution(dense, names).plain()
    edges = weights[dense_key]["edges"]
    after = analyze_weight_distribution(model, names, edges=edges).plain()
    weights[row["hash"]] = {**after, "dense": dense_key}
    store.write_json("weights.json", weights)
    if bench.recipe.save_models:
        folder = store.path / "models" / f"{trial.index:03d}-{row['hash'][:8]}"
        save_model(model, bench.loaded.processor, folder)


def save_model(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Save a model with its processor so that ``from_pretrained(folder)`` gives it back.

    Written beside the folder under a temporary name, then renamed.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def report(directory: str | Path) -> list[Row]:
    """Draw table, curves and page of a run's folder again, from its rows alone.

    Returns:
        The rows, in the grid's order.

    Raises:
        OutputError: the folder holds no results, cannot be written, or a row cannot be read.
    """
    store = RunDirectory(Path(directory))
    if not store.rows_file.is_file():
        raise OutputError(f"{directory} holds no {store.rows_file.name}; give the folder of a run")
    path = store.path / "recipe.yaml"
    recipe = load_recipe(path) if path.is_file() else None
    rows = store.rows()
    ordered = rows if recipe is None else _ordered(rows, recipe)
    write_report(
        ordered,
        store.path,
        recipe_text="" if recipe is None else path.read_text(encoding="utf-8"),
        environment=store.read_json("environment.json"),
        weights=store.read_json("weights.json"),
        title="Compression report" if recipe is None else f"Compression report: {recipe.name}",
    )
    return ordered
