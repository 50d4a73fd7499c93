"""What one trial leaves behind: computed by whichever process runs it, stored by one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hfcompress.checkpoint.save import save_compressed
from hfcompress.errors import HfcompressError, first_line
from hfcompress.measure.weights import analyze_weight_distribution, weight_grids
from hfcompress.models.architectures import default_targets
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.weight_levels import weight_levels
from hfcompress.recipes.grid import Trial
from hfcompress.report.card import model_card
from hfcompress.sweep.experiment import content_hash
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.trial import Logits, Runner, plain_model

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """A finished or failed trial.

    Attributes:
        settings: of the trial.
        row: None where it failed.
        reason: why it failed.
        predictions: logits of the trial's model and of its dense model, by their key.
        weights: weight histograms of both, by their key; of the trial's model pieces of its
            weights or, where it is quantized, their levels.
    """

    settings: dict[str, Any]
    row: Row | None = None
    reason: str = ""
    predictions: dict[str, Logits] = field(default_factory=dict)
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)


def perform(runner: Runner, trial: Trial, folder: Path | None) -> Outcome:
    """Carry a trial out; a failure on the way is an outcome too.

    Args:
        runner: carries it out.
        trial: which.
        folder: the run's folder, where the recipe keeps models; None measures the row only.
    """
    try:
        row, model, logits, dense = runner.run(trial)
        if folder is None:
            return Outcome(trial.settings, row)
        weights = _histograms(runner, trial, row, plain_model(model))
        if isinstance(model, QuantizedModel):
            weights[row["hash"]]["levels"] = _levels(model)
        else:
            names = [layer["name"] for layer in row["layers"]] or list(default_targets(model))
            weights[row["hash"]]["grids"] = weight_grids(model, names)
        if runner.bench.recipe.save_models:
            name = f"{trial.index:03d}-{row['hash'][:8]}"
            processor = runner.bench.encoding(trial, len(trial.steps)).processor
            if isinstance(model, QuantizedModel):
                model.save(folder / "models" / name, processor, model_card(row, name=name))
            else:
                packed = runner.bench.recipe.save_sparse
                save_model(model, processor, folder / "models" / name, packed)
    except (HfcompressError, RuntimeError, MemoryError) as error:
        return Outcome(trial.settings, reason=first_line(error))
    predictions = {row["hash"]: logits, f"dense-{runner.dense_prefix(trial)}": dense}
    return Outcome(trial.settings, row, predictions=predictions, weights=weights)


def keep(outcome: Outcome, store: RunDirectory) -> None:
    """Write an outcome into the run's folder, its row last: with the row, all of it is there."""
    if outcome.row is None:
        return
    store.write_json("weights.json", {**(store.read_json("weights.json") or {}), **outcome.weights})
    for key, logits in outcome.predictions.items():
        store.save_predictions(key, logits)
    store.append(outcome.row)


def _histograms(
    runner: Runner, trial: Trial, row: Row, model: PreTrainedModel
) -> dict[str, dict[str, Any]]:
    """The touched layers' weight histogram beside the dense one's, in the same bins."""
    names = [layer["name"] for layer in row["layers"]] or None
    key = f"dense-{content_hash([runner.dense_prefix(trial), names])}"
    if key not in runner.histograms:
        dense = runner.dense_model(trial)
        runner.histograms[key] = analyze_weight_distribution(dense, names).to_dict()
    edges = runner.histograms[key]["edges"]
    after = analyze_weight_distribution(model, names, edges=edges).to_dict()
    return {key: runner.histograms[key], row["hash"]: {**after, "dense": key}}


def _levels(model: QuantizedModel) -> list[dict[str, Any]]:
    """The weights beside their integers; none of weights in 4 bits, which share steps otherwise."""
    if model.config.bits != 8:
        return []
    names = [module.name for module in model.coverage.modules if module.quantized]
    return weight_levels(model.source, names, model.config.per_channel)


def save_model(model: PreTrainedModel, processor: Any, folder: Path, sparse: bool = False) -> None:
    """Save a model with its processor so that ``from_pretrained(folder)`` gives it back.

    Written beside the folder under a temporary name, then renamed.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    save_compressed(model, temporary, sparse)
    processor.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
