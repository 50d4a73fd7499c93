"""One trial: the model it leads to, and its row."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from hfcompress.inference import (
    checking_pays,
    placed,
    predict,
    predict_checked,
    without_labels,
)  # fmt: skip
from hfcompress.measure.macs import count_macs
from hfcompress.measure.size import calculate_model_size, calculate_sparsity, count_parameters
from hfcompress.models.architectures import default_targets
from hfcompress.models.loading import weights_hash
from hfcompress.pruning.targets import prunable
from hfcompress.quantization.model import QuantizedModel
from hfcompress.recipes.grid import Trial
from hfcompress.report.rows import BELOW_CHANCE, is_below_chance
from hfcompress.shrinking.vocabulary.shrink import keep_tokens
from hfcompress.steps.context import Model, ModelState, StepReport
from hfcompress.steps.registry import run_step
from hfcompress.sweep.experiment import Experiment
from hfcompress.sweep.timing import first_times, time_model
from hfcompress.tasks.sentence_similarity import stored_qualities
from hfcompress.utils import Fields, Row

Logits = NDArray[np.float32]
Value = TypeVar("Value")
# Seconds after which a calibrated step is worth the disk that its model takes: training after it
# may be cut, or already be kept, and the step need not be done again.
KEEP_AFTER = 20.0


@dataclass(frozen=True)
class Finished:
    """A trial that was carried out.

    Attributes:
        row: what was measured, as plain data.
        state: its model.
        logits: of its model, [rows, classes].
        dense_logits: of the model that it is compared with.
    """

    row: Row
    state: ModelState
    logits: Logits
    dense_logits: Logits


@dataclass
class Runner:
    """Carries out trials, sharing what they have in common.

    Models of prefixes that several pending trials share are kept in memory and copied; the
    others are worked on in place.

    Attributes:
        experiment: what all trials share.
        pending: trials still to run; decides which prefixes are worth keeping.
        predictions: logits by the hash of the weights that gave them.
        histograms: of dense models' weights, by a key of the model and its layers.
        latest: the state that the trial which ran last ended in.
        keep_long: keep every calibrated step that took long: trials that are not known yet may
            share it.
    """

    experiment: Experiment
    pending: list[Trial]
    predictions: dict[str, Logits] = field(default_factory=dict)
    histograms: dict[str, Fields] = field(default_factory=dict)
    latest: ModelState | None = None
    keep_long: bool = False
    _kept: dict[str, tuple[ModelState, list[StepReport]]] = field(default_factory=dict)
    _uses: Counter[str] = field(default_factory=Counter)
    _dense: dict[str, tuple[str, int]] = field(default_factory=dict)
    _exact_rows: dict[str, int] = field(default_factory=dict)
    _dense_chosen: dict[str, Logits] = field(default_factory=dict)
    _trained_here: set[str] = field(default_factory=set)
    _labels: LineLabels | None = None

    def __post_init__(self) -> None:
        self.expect(self.pending)

    def expect(self, trials: Iterable[Trial]) -> None:
        """Keep the models that some trials still to run share."""
        for trial in trials:
            self._uses.update(set(trial.prefixes))

    def release(self, trial: Trial) -> None:
        """Drop the models that no pending trial needs any more."""
        for prefix in set(trial.prefixes):
            self._uses[prefix] -= 1
            if self._uses[prefix] <= 0:
                self._kept.pop(prefix, None)

    def state_after(
        self, trial: Trial, place: int | None = None
    ) -> tuple[ModelState, list[StepReport]]:
        """The state after the first ``place`` steps (default: all), and what each step did.

        The model is the caller's to change.
        """
        place = len(trial.steps) if place is None else place
        prefix = trial.prefixes[place]
        if prefix in self._kept:
            state, reports = self._kept[prefix]
            return state.copy(), list(reports)
        if place == 0:
            state, reports = self.experiment.start(trial), []
        else:
            state, reports = self._carry_out(trial, place)
        if self._uses[prefix] > 1:
            self._kept[prefix] = (state.copy(), list(reports))
        return state, reports

    def _carry_out(self, trial: Trial, place: int) -> tuple[ModelState, list[StepReport]]:
        """Carry out step number ``place``, counted from 1, or take its kept result."""
        config, prefix = trial.steps[place - 1].config, trial.prefixes[place]
        experiment = self.experiment
        before, reports = self.state_after(trial, place - 1)
        cache, progress = experiment.cache, experiment.progress
        with cache.locked(prefix, progress) if config.trains else nullcontext():
            state, report = self._kept_or_new(trial, place, before)
        return state, [*reports, report]

    def _kept_or_new(
        self, trial: Trial, place: int, before: ModelState
    ) -> tuple[ModelState, StepReport]:
        """Take the kept result of step number ``place``, or carry it out."""
        step, prefix = trial.steps[place - 1], trial.prefixes[place]
        config, experiment = step.config, self.experiment
        kept = None
        if config.trains or config.calibrates:
            kept = experiment.cache.get(prefix, before.network, experiment.progress)
        if kept is not None:
            source = "an earlier trial" if prefix in self._trained_here else "an earlier run"
            experiment.progress.note(f"{step.name}: kept from {source}")
            report = StepReport.from_dict(experiment.cache.done(prefix))
            return before.after(config, report, kept), report
        context = experiment.context(trial, place - 1, before, lambda: self._teacher(trial, before))
        started = time.perf_counter()
        state, report = run_step(before, config, context)
        took_long = config.calibrates and time.perf_counter() - started >= KEEP_AFTER
        if config.trains or (took_long and (self.keep_long or trial.trains_after(place))):
            experiment.cache.put(prefix, state.network, report.to_dict(), experiment.progress)
            self._trained_here.add(prefix)
        return state, report

    def _teacher(self, trial: Trial, state: ModelState) -> PreTrainedModel:
        """The dense model, reading the rows that a state's model reads."""
        model = self.dense_model(trial)
        for cut in state.vocabulary_cuts:
            keep_tokens(model, cut.kept)
        return model

    def predict(self, state: ModelState) -> tuple[str, Logits]:
        """The model's weights hash, and its logits; computed once for equal weights."""
        model, experiment = state.model, self.experiment
        key = model.engine.digest if isinstance(model, QuantizedModel) else weights_hash(model)
        if key not in self.predictions:
            encoding, measure = experiment.encoding(state), experiment.recipe.measure
            experiment.progress.stage(f"predicting {len(experiment.eval):,} rows")
            size = measure.batch_size
            rows = (encoding.eval, size, experiment.progress.work, encoding.batches(size))
            if isinstance(model, QuantizedModel):
                self.predictions[key] = model.predict(*rows)
                return key, self.predictions[key]
            known = measure.precision == "auto" and experiment.examples.kind == "classification"
            with placed(model, experiment.recipe.device):
                if known and checking_pays(model, encoding.eval):
                    found = predict_checked(model, *rows)
                    self.predictions[key], self._exact_rows[key] = found.logits, found.exact_rows
                else:
                    self.predictions[key] = predict(model, *rows)
        return key, self.predictions[key]

    def dense_state(self, trial: Trial) -> ModelState:
        """The state that the trial is compared with; the model is the caller's to change."""
        return self.state_after(trial, trial.dense_place)[0]

    def dense_model(self, trial: Trial) -> PreTrainedModel:
        """The model that the trial is compared with; the caller's to change."""
        return self.dense_state(trial).network

    def dense_logits(self, trial: Trial) -> Logits:
        """Logits of the model that the trial is compared with; computed once."""
        prefix = trial.dense_prefix
        if prefix not in self._dense:
            state = self.dense_state(trial)
            self._dense[prefix] = self.predict(state)[0], model_bytes(state.model)
        return self.predictions[self._dense[prefix][0]]

    def run(self, trial: Trial) -> Finished:
        """Carry a trial out and measure its model."""
        dense_logits = self.dense_logits(trial)
        started = time.perf_counter()
        state, reports = self.state_after(trial)
        self.latest = state
        key, logits = self.predict(state)
        row = self._row(trial, state, reports, key, dense_logits)
        if is_below_chance(row):
            row["note"] = "; ".join(filter(None, (row["note"], BELOW_CHANCE)))
        row["timings"] = self._timings(trial, state.model)
        row["latency"] = _step_latency(reports) or first_times(row["timings"])
        row["seconds"] = round(time.perf_counter() - started, 3)
        return Finished(row, state, logits, dense_logits)

    def _row(
        self,
        trial: Trial,
        state: ModelState,
        reports: list[StepReport],
        key: str,
        dense: Logits,
    ) -> Row:
        model, experiment = state.network, self.experiment
        measure = experiment.recipe.measure
        asked, logits = experiment.references, self.predictions[key]
        quality = state.task.quality(experiment.metric, logits, asked, dense)
        pruning = next((report for report in reversed(reports) if report.layers is not None), None)
        requested = None if pruning is None else pruning.requested_sparsity
        left = prunable(model)  # a step after the pruning may have dropped layers
        found = () if pruning is None else pruning.layers or ()
        layers = [layer for layer in found if layer["name"] in left]
        names = [layer["name"] for layer in layers] or list(default_targets(model))
        sparsity = calculate_sparsity(model, names)
        reference = experiment.recipe.reference
        size = model_bytes(state.model)
        return {
            "hash": trial.row_hash,
            "index": trial.index,
            "settings": trial.settings,
            "method": self.label(trial),
            "seed": trial.seed,
            "requested_sparsity": requested,
            "actual_sparsity": sparsity.targets,
            "model_sparsity": sparsity.model,
            "parameters": count_parameters(model),
            "nonzero_parameters": count_parameters(model, nonzero=True),
            "bytes": size,
            "compression_ratio": self._dense[trial.dense_prefix][1] / size,
            "macs": self._macs(state) if measure.macs else None,
            **quality.to_dict(),
            **self._choice(trial, state),
            "classes": state.task.by_class(logits, asked, dense, experiment.examples.labels),
            "other_metrics": {
                name: state.task.metric(name, logits, asked) for name in measure.also
            },
            **self._stored(logits),
            "reference": _near(reference.values if reference else {}, requested),
            "note": _near(reference.notes if reference else {}, requested) or "",
            **({"reference_n": reference.n} if reference and reference.n else {}),
            **experiment.chance,
            "weights_hash": key,
            "fp32_rows": self._exact_rows.get(key, len(logits)),
            "layers": layers,
            "steps": [
                {"step": step.name, **report.to_dict(layers=False)}
                for step, report in zip(trial.steps, reports, strict=True)
            ],
        }

    def _stored(self, vectors: Logits) -> Fields:
        """What storing an embedding model's vectors as the recipe says loses."""
        experiment = self.experiment
        ways = experiment.recipe.embedding
        if not ways:
            return {}
        asked = experiment.references
        return {"stored_vectors": stored_qualities(experiment.metric, vectors, asked, ways)}

    def _choice(self, trial: Trial, state: ModelState) -> Fields:
        """The metric on the rows that models are chosen by, where the data say some."""
        encoding = self.experiment.encoding(state)
        if encoding.choose is None:
            return {}
        labels = self.experiment.examples.labels
        asked = state.task.references(encoding.choose, labels)
        key = trial.dense_prefix
        if key not in self._dense_chosen:
            self._dense_chosen[key] = self._predict_chosen(self.dense_state(trial))
        logits = self._predict_chosen(state)
        dense = self._dense_chosen[key]
        quality = state.task.quality(self.experiment.metric, logits, asked, dense)
        return {"choice": quality.to_dict()}

    def _predict_chosen(self, state: ModelState) -> Logits:
        """Logits of the rows that models are chosen by."""
        encoding, size = self.experiment.encoding(state), self.experiment.recipe.measure.batch_size
        assert encoding.choose is not None
        if isinstance(state.model, QuantizedModel):
            return state.model.predict(encoding.choose, size)
        with placed(state.model, self.experiment.recipe.device):
            return predict(state.model, encoding.choose, size)

    def label(self, trial: Trial) -> str:
        """What the trial's line in the plot is called."""
        if self._labels is None:
            trials, measure = self.experiment.trials, self.experiment.recipe.measure
            self._labels = LineLabels(trials, measure.every_step)
        return self._labels.of(trial)

    def _timings(self, trial: Trial, model: Model) -> list[Fields]:
        batches = self.experiment.recipe.measure.latency
        if not batches:
            return []
        self.experiment.progress.stage("timing")
        same = trial.dense_place == len(trial.steps)
        dense = None if same else self.dense_model(trial)
        return [time_model(model, dense, batch) for batch in batches]

    def _macs(self, state: ModelState) -> int:
        """Multiply-accumulates of one example of median length."""
        rows = self.experiment.encoding(state).eval
        lengths = rows.lengths
        middle = (
            0 if lengths is None else int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
        )
        ((_, batch),) = rows.batches(1, np.array([middle]))
        return count_macs(state.network, without_labels(batch)).total


def model_bytes(model: nn.Module | QuantizedModel) -> int:
    """Bytes of the model's own files."""
    return model.bytes if isinstance(model, QuantizedModel) else calculate_model_size(model)


def _step_latency(reports: list[StepReport]) -> dict[str, float] | None:
    """Milliseconds that a step measured of the dense and of its own model; None where none did."""
    return next((report.latency for report in reversed(reports) if report.latency), None)


def _near(values: dict[float, Value], requested: float | None) -> Value | None:
    """The value for a requested sparsity; 0.3 in YAML and in a grid are the same number."""
    if requested is None:
        return None
    return next((value for key, value in values.items() if abs(key - requested) < 1e-9), None)


def line_label(trial: Trial, trials: Sequence[Trial] = (), every_step: bool = False) -> str:
    """What a trial's line in the plot is called.

    Its method, and the settings in which it differs from other trials of that method; sparsity
    and seed are points on the line.

    Args:
        trial: which.
        trials: all of its recipe.
        every_step: trials end in each of the recipe's steps; the method is the last step then.
    """
    return LineLabels(trials, every_step).of(trial)


class LineLabels:
    """What the lines of a recipe's trials are called; see `line_label`."""

    def __init__(self, trials: Sequence[Trial], every_step: bool) -> None:
        self._method: Callable[[Trial], str] = _last_step if every_step else _method
        self._settings: dict[str, list[Fields]] = {}
        for trial in trials:
            self._settings.setdefault(self._method(trial), []).append(trial.settings)
        self._values: dict[tuple[str, str], set[str]] = {}

    def of(self, trial: Trial) -> str:
        """The label of a trial, one of those given or another."""
        method = self._method(trial)
        parts = [method]
        for field_name, value in trial.settings.items():
            last = field_name.rpartition(".")[2]
            varies = self._known(method, field_name) != {repr(value)}
            if varies and last not in {"sparsity", "seed", "method", "targets"}:
                parts.append(f"{value}" if isinstance(value, str) else f"{last} {value}")
        return ", ".join(parts)

    def _known(self, method: str, field_name: str) -> set[str]:
        """The values of a field in all trials of a method; collected once."""
        key = (method, field_name)
        if key not in self._values:
            members = self._settings.get(method, [])
            self._values[key] = {repr(settings.get(field_name)) for settings in members}
        return self._values[key]


def _method(trial: Trial) -> str:
    compressing = [s for s in trial.steps if s.config.compresses]
    if not compressing:
        return "dense"
    return str(getattr(compressing[-1].config, "method", compressing[-1].name))


def _last_step(trial: Trial) -> str:
    """The last step's name, numbered where the trial has several; before compression: dense."""
    if not any(step.config.compresses for step in trial.steps):
        return "dense"
    last = trial.steps[-1].name
    count = sum(step.name == last for step in trial.steps)
    return last if count == 1 else f"{last} {count}"
