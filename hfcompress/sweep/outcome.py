"""What one trial leaves behind: computed by whichever process runs it, stored by one."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from transformers import PreTrainedModel

from hfcompress.checkpoint.save import save_compressed
from hfcompress.errors import HfcompressError, first_line
from hfcompress.measure.weights import analyze_weight_distribution, weight_grids
from hfcompress.models.architectures import default_targets
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.weight_levels import weight_levels
from hfcompress.recipes.grid import Trial
from hfcompress.report.card import model_card
from hfcompress.report.rows import FAILED
from hfcompress.storage.temporary import replace_folder, written_beside
from hfcompress.sweep.cards import card_source
from hfcompress.sweep.content import content_hash
from hfcompress.sweep.experiment import Experiment
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.trial import Finished, Logits, Runner
from hfcompress.utils import Fields, Row, atomic_write

if TYPE_CHECKING:
    from hfcompress.quantization.model import Processor

Predictions = dict[str, Logits | dict[str, NDArray[Any]]]
INTERRUPTS = (KeyboardInterrupt, GeneratorExit)
"""What ends a run; anything else that is raised is the failure of one trial."""


@dataclass(frozen=True)
class Outcome:
    """A finished or failed trial.

    Attributes:
        settings: of the trial.
        row_hash: of the trial.
        row: None where it failed.
        reason: why it failed.
        trace: where it failed, for the folder.
        predictions: logits of the trial's model and of its dense model, by their key; or arrays
            by name.
        weights: weight histograms of both, by their key; of the trial's model pieces of its
            weights or, where it is quantized, their levels.
    """

    settings: Fields
    row_hash: str
    row: Row | None = None
    reason: str = ""
    trace: str = ""
    predictions: Predictions = field(default_factory=dict)
    weights: dict[str, Fields] = field(default_factory=dict)


def perform(runner: Runner, trial: Trial, folder: Path | None) -> Outcome:
    """Carry a trial out; a failure on the way is an outcome too.

    Args:
        runner: carries it out.
        trial: which.
        folder: the run's folder, where the recipe keeps models; None measures the row only.
    """
    try:
        finished = runner.run(trial)
        if folder is None:
            return Outcome(trial.settings, trial.row_hash, finished.row)
        weights = _weights(runner, trial, finished)
        answers = _answers(runner.experiment, finished)
        if runner.experiment.recipe.save_models:
            _save(runner.experiment, trial, finished, folder / "models")
    except INTERRUPTS:
        raise
    except BaseException as error:  # whatever a library raises: a panic of Rust is no Exception
        return failed(trial, error)
    predictions: Predictions = {
        finished.row["hash"]: answers,
        f"dense-{trial.dense_prefix}": finished.dense_logits,
    }
    return Outcome(
        trial.settings, trial.row_hash, finished.row, predictions=predictions, weights=weights
    )


def _answers(experiment: Experiment, finished: Finished) -> dict[str, NDArray[Any]]:
    """The logits and, where the task has them, what the metric is computed from in each unit."""
    task, asked = finished.state.task, experiment.references
    units = task.units(experiment.metric, finished.logits, asked)
    return {"logits": finished.logits, **({} if units is None else {"units": units})}


def failed(trial: Trial, error: BaseException) -> Outcome:
    """The outcome of a trial in which something was raised."""
    named = isinstance(error, HfcompressError) or type(error) is RuntimeError
    reason = first_line(error)
    if not named and not reason.startswith(type(error).__name__):
        reason = f"{type(error).__name__}: {reason}"
    trace = "".join(traceback.format_exception(error))
    return Outcome(trial.settings, trial.row_hash, reason=reason, trace=trace)


def failed_row(trial: Trial, reason: str) -> Row:
    """The row of a trial that failed."""
    return {
        "hash": trial.row_hash,
        "index": trial.index,
        "settings": trial.settings,
        "seed": trial.seed,
        "steps": [{"step": step.name} for step in trial.steps],
        "status": FAILED,
        "reason": reason,
    }


def keep(outcome: Outcome, trial: Trial, store: RunDirectory) -> None:
    """Write an outcome into the run's folder, its row last: with the row, all of it is there."""
    if outcome.row is None:
        store.append_failure({**failed_row(trial, outcome.reason), "trace": outcome.trace})
        return
    store.append_weights(outcome.weights)
    for key, found in outcome.predictions.items():
        store.save_predictions(key, found)
    store.append(outcome.row)


def _save(experiment: Experiment, trial: Trial, finished: Finished, folder: Path) -> None:
    """Write the trial's model with a card, in the form that the recipe asks for."""
    row, state = finished.row, finished.state
    name = f"{trial.index:03d}-{row['hash'][:8]}"
    source = card_source(experiment, [step.to_dict() for step in trial.steps])
    card = partial(model_card, row, name=name, source=source)
    if isinstance(state.model, QuantizedModel):
        state.model.save(folder / name, state.processor, card())
    else:
        sparse = experiment.recipe.save_sparse
        save_model(state.model, state.processor, folder / name, sparse, card)


def _weights(runner: Runner, trial: Trial, finished: Finished) -> dict[str, Fields]:
    """Histograms of the pruned layers' weights beside those before, in the same bins; and pieces
    of the weights or, of a quantized model, their levels.

    Before is the dense model or, where each step has a row, what the step before has left.
    """
    row, state = finished.row, finished.state
    names = [layer["name"] for layer in row["layers"]] or None
    place = trial.dense_place
    if runner.experiment.recipe.measure.every_step:
        place = max(len(trial.steps) - 1, 0)
    key = f"dense-{content_hash([trial.prefixes[place], names])}"
    if key not in runner.histograms:
        model = runner.state_after(trial, place)[0].network
        modules = dict(model.named_modules())  # a student has layers that its teacher has not
        shared = [name for name in names or () if name in modules] or None
        runner.histograms[key] = analyze_weight_distribution(model, shared).to_dict()
    before = runner.histograms[key]
    after = analyze_weight_distribution(state.network, names, edges=before["edges"]).to_dict()
    if isinstance(state.model, QuantizedModel):
        pictures = {"levels": _levels(state.model)}
    else:
        shown = names or list(default_targets(state.model))
        pictures = {"grids": weight_grids(state.model, shown)}
    return {key: before, row["hash"]: {**after, "dense": key, **pictures}}


def _levels(model: QuantizedModel) -> list[Fields]:
    """The weights beside their integers; none of weights in 4 bits, which share steps otherwise."""
    if model.config.bits != 8:
        return []
    names = [module.name for module in model.coverage.modules if module.quantized]
    found = weight_levels(model.source, names, model.config.per_channel)
    return [{**layer} for layer in found]


def save_model(
    model: PreTrainedModel,
    processor: Processor,
    folder: Path,
    sparse: bool = False,
    card: Callable[..., str] | None = None,
) -> None:
    """Save a model with its processor so that ``from_pretrained(folder)`` gives it back.

    Written beside the folder under a temporary name, then renamed.

    Args:
        model: of any shapes.
        processor: its tokenizer or image processor.
        folder: where to.
        sparse: pack the zeros.
        card: makes the model card; takes ``needs_hfcompress``.
    """
    with written_beside(folder) as temporary:
        save_compressed(model, temporary, sparse)
        if card is not None:
            config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
            text = card(needs_hfcompress="quantization_config" in config)
            atomic_write(temporary / "README.md", text)
        processor.save_pretrained(temporary)
        replace_folder(temporary, folder)
