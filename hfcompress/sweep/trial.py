"""One trial: the model it leads to, and its row."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hfcompress.inference import checking_pays, predict, predict_checked
from hfcompress.measure.evaluation import ClassAccuracy, class_accuracy, compare, compute_metric
from hfcompress.measure.macs import count_macs
from hfcompress.measure.size import calculate_model_size, calculate_sparsity, count_parameters
from hfcompress.models.architectures import default_targets
from hfcompress.models.loading import weights_hash
from hfcompress.quantization.model import QuantizedModel
from hfcompress.recipes.grid import Trial
from hfcompress.steps.registry import kind_of
from hfcompress.sweep.experiment import Encoding, Workbench
from hfcompress.sweep.timing import first_times, time_model

Logits = NDArray[np.float32]
Model = PreTrainedModel | QuantizedModel
# Seconds after which a calibrated step is worth the disk that its model takes: training after it
# may be cut, or already be kept, and the step need not be done again.
KEEP_AFTER = 20.0


@dataclass
class Runner:
    """Carries out trials, sharing what they have in common.

    Models of prefixes that several pending trials share are kept in memory and copied; the
    others are worked on in place.

    Attributes:
        bench: what all trials share.
        pending: trials still to run; decides which prefixes are worth keeping.
        predictions: logits by the hash of the weights that gave them.
        histograms: of dense models' weights, by a key of the model and its layers.
        latest: the model of the trial that ran last.
        keep_long: keep every calibrated step that took long: trials that are not known yet may
            share it.
    """

    bench: Workbench
    pending: list[Trial]
    predictions: dict[str, Logits] = field(default_factory=dict)
    histograms: dict[str, dict[str, Any]] = field(default_factory=dict)
    latest: Model | None = None
    keep_long: bool = False
    _kept: dict[str, tuple[PreTrainedModel, list[dict[str, Any]]]] = field(default_factory=dict)
    _uses: Counter[str] = field(default_factory=Counter)
    _dense: dict[str, tuple[str, int]] = field(default_factory=dict)
    _exact_rows: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.expect(self.pending)

    def expect(self, trials: Iterable[Trial]) -> None:
        """Keep the models that some trials still to run share."""
        for trial in trials:
            self._uses.update(set(self.bench.prefixes(trial)))

    def release(self, trial: Trial) -> None:
        """Forget the models that no pending trial needs any more."""
        for prefix in set(self.bench.prefixes(trial)):
            self._uses[prefix] -= 1
            if self._uses[prefix] <= 0:
                self._kept.pop(prefix, None)

    def dense_prefix(self, trial: Trial) -> str:
        """Hash of the model before the first compressing step."""
        return self.bench.prefixes(trial)[self._dense_place(trial)]

    def _dense_place(self, trial: Trial) -> int:
        for place, step in enumerate(trial.steps):
            if kind_of(step.config).compresses:
                return place
        return len(trial.steps)

    def model_after(self, trial: Trial, place: int) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
        """The model after the first ``place`` steps, and what each did; yours to change."""
        prefix = self.bench.prefixes(trial)[place]
        if prefix in self._kept:
            model, done = self._kept[prefix]
            return copy.deepcopy(model), list(done)
        if place == 0:
            model, done = self.bench.start(trial), []
        else:
            model, done = self._carry_out(trial, place, prefix)
        if self._uses[prefix] > 1:
            self._kept[prefix] = (copy.deepcopy(model), list(done))
        return model, done

    def _carry_out(
        self, trial: Trial, place: int, prefix: str
    ) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
        step = trial.steps[place - 1]
        kind, cache = kind_of(step.config), self.bench.cache
        before, done = self.model_after(trial, place - 1)
        kept = cache.get(prefix, before) if kind.trains or kind.calibrates else None
        if kept is not None:
            self.bench.progress.note(f"{step.name}: kept from an earlier run")
            return kept, [*done, cache.done(prefix)]
        layers = [layer["name"] for layer in _compression(done)[1]]
        context = self.bench.context(
            trial, prefix, lambda: self._teacher(trial, place), tuple(layers) or None
        )
        context = replace(context, shrunk=any("parts" in did for did in done))
        started = time.perf_counter()
        model, did = kind.function(before, step.config, context)
        long = kind.calibrates and time.perf_counter() - started >= KEEP_AFTER
        if kind.trains or (long and (self.keep_long or _trains_later(trial, place))):
            cache.put(prefix, model, did)
        return model, [*done, did]

    def _teacher(self, trial: Trial, place: int) -> PreTrainedModel:
        """The dense model, reading the rows that the step before ``place`` ends reads."""
        prefixes = self.bench.prefixes(trial)[self._dense_place(trial) + 1 : place]
        return self.bench.encodings.adapt(self.dense_model(trial), prefixes)

    def predict(self, model: Model, encoding: Encoding) -> tuple[str, Logits]:
        """The model's weights hash, and its logits; computed once for equal weights."""
        key = model.engine.digest if isinstance(model, QuantizedModel) else weights_hash(model)
        if key not in self.predictions:
            bench = self.bench
            bench.progress.stage(f"predicting {len(bench.eval):,} rows")
            size = bench.recipe.measure.batch_size
            rows = (encoding.eval, size, bench.progress.work, encoding.batches(size))
            if isinstance(model, QuantizedModel):
                self.predictions[key] = model.predict(*rows)
            elif bench.recipe.measure.precision == "auto" and checking_pays(model, encoding.eval):
                found = predict_checked(model, *rows)
                self.predictions[key], self._exact_rows[key] = found.logits, found.exact_rows
            else:
                self.predictions[key] = predict(model, *rows)
        return key, self.predictions[key]

    def dense_logits(self, trial: Trial) -> Logits:
        """Logits of the model that the trial is compared with; computed once."""
        prefix = self.dense_prefix(trial)
        if prefix not in self._dense:
            encoding = self.bench.encoding(trial, self._dense_place(trial))
            model = self.dense_model(trial)
            self._dense[prefix] = self.predict(model, encoding)[0], model_bytes(model)
        return self.predictions[self._dense[prefix][0]]

    def dense_model(self, trial: Trial) -> PreTrainedModel:
        """The model that the trial is compared with."""
        return self.model_after(trial, self._dense_place(trial))[0]

    def run(self, trial: Trial) -> tuple[dict[str, Any], Model, Logits, Logits]:
        """Carry a trial out.

        Returns:
            Its row, its model, its logits and the dense model's logits.
        """
        dense_logits = self.dense_logits(trial)
        started = time.perf_counter()
        model, done = self.model_after(trial, len(trial.steps))
        self.latest = model
        encoding = self.bench.encoding(trial, len(trial.steps))
        key, logits = self.predict(model, encoding)
        row = self._row(trial, model, done, key, dense_logits)
        row["timings"] = self._timings(trial, model)
        row["latency"] = _latency(done) or first_times(row["timings"])
        row["seconds"] = round(time.perf_counter() - started, 3)
        return row, model, logits, dense_logits

    def _row(
        self,
        trial: Trial,
        result: Model,
        done: list[dict[str, Any]],
        key: str,
        dense: Logits,
    ) -> dict[str, Any]:
        model = plain_model(result)
        bench, measure = self.bench, self.bench.recipe.measure
        labels, logits = bench.eval.labels, self.predictions[key]
        quality = compare(measure.metric, logits, labels, dense)
        requested, layers = _compression(done)
        names = [layer["name"] for layer in layers] or list(default_targets(model))
        sparsity = calculate_sparsity(model, names)
        reference = bench.recipe.reference
        size = model_bytes(result)
        return {
            "hash": bench.row_hash(trial),
            "index": trial.index,
            "settings": trial.settings,
            "method": line_label(trial, bench.trials, measure.every_step),
            "seed": trial.seed,
            "requested_sparsity": requested,
            "actual_sparsity": sparsity.targets,
            "model_sparsity": sparsity.model,
            "parameters": count_parameters(model),
            "nonzero_parameters": count_parameters(model, nonzero=True),
            "bytes": size,
            "compression_ratio": self._dense[self.dense_prefix(trial)][1] / size,
            "macs": self._macs(model, trial) if measure.macs else None,
            **quality.to_dict(),
            "classes": self._classes(logits, labels, dense),
            "other_metrics": {name: compute_metric(name, logits, labels) for name in measure.also},
            "reference": _near(reference.values if reference else {}, requested),
            "note": _near(reference.notes if reference else {}, requested) or "",
            "weights_hash": key,
            "fp32_rows": self._exact_rows.get(key, len(logits)),
            "layers": layers,
            "steps": [
                {"step": step.name, **{k: v for k, v in did.items() if k != "layers"}}
                for step, did in zip(trial.steps, done, strict=True)
            ],
        }

    def _timings(self, trial: Trial, model: Model) -> list[dict[str, Any]]:
        batches = self.bench.recipe.measure.latency
        if not batches:
            return []
        self.bench.progress.stage("timing")
        same = self._dense_place(trial) == len(trial.steps)
        dense = None if same else self.dense_model(trial)
        return [time_model(model, dense, batch) for batch in batches]

    def _classes(
        self, logits: Logits, labels: NDArray[np.int64], dense: Logits
    ) -> list[ClassAccuracy]:
        """Accuracy by class; of two classes the metrics say enough."""
        names = self.bench.examples.labels
        return class_accuracy(logits, labels, dense, names) if len(names) > 2 else []

    def _macs(self, model: PreTrainedModel, trial: Trial) -> int:
        """Multiply-accumulates of one example of median length."""
        rows = self.bench.encoding(trial, len(trial.steps)).eval
        lengths = rows.lengths
        middle = (
            0 if lengths is None else int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
        )
        ((_, batch),) = rows.batches(1, np.array([middle]))
        batch.pop("labels", None)
        return count_macs(model, batch).total


def _trains_later(trial: Trial, place: int) -> bool:
    """Whether a step after the first ``place`` trains."""
    return any(kind_of(step.config).trains for step in trial.steps[place:])


def model_bytes(model: Model) -> int:
    """Bytes of the model's own files."""
    return model.bytes if isinstance(model, QuantizedModel) else calculate_model_size(model)


def plain_model(model: Model) -> PreTrainedModel:
    """The torch model that a trial leads to: of a quantized one, the model it was made from."""
    return model.source if isinstance(model, QuantizedModel) else model


def _compression(done: list[dict[str, Any]]) -> tuple[float | None, list[dict[str, Any]]]:
    """Requested sparsity and touched layers of the last step that prunes."""
    for did in reversed(done):
        if "layers" in did:
            return did.get("requested"), did["layers"]
    return None, []


def _latency(done: list[dict[str, Any]]) -> dict[str, float] | None:
    """Milliseconds that a step measured of the dense and of its own model; None where none did."""
    return next((did["latency"] for did in reversed(done) if did.get("latency")), None)


def _near(values: dict[float, Any], requested: float | None) -> Any:
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
    name: Callable[[Trial], str] = _last_step if every_step else _method
    method = name(trial)
    others = [other.settings for other in trials if name(other) == method]
    parts = [method]
    for field_name, value in trial.settings.items():
        last = field_name.rpartition(".")[2]
        varies = not others or any(other.get(field_name) != value for other in others)
        if varies and last not in {"sparsity", "seed", "method", "targets"}:
            parts.append(f"{value}" if isinstance(value, str) else f"{last} {value}")
    return ", ".join(parts)


def _method(trial: Trial) -> str:
    compressing = [s for s in trial.steps if kind_of(s.config).compresses]
    if not compressing:
        return "dense"
    return str(getattr(compressing[-1].config, "method", compressing[-1].name))


def _last_step(trial: Trial) -> str:
    """The last step's name, numbered where the trial has several; before compression: dense."""
    if not any(kind_of(step.config).compresses for step in trial.steps):
        return "dense"
    last = trial.steps[-1].name
    count = sum(step.name == last for step in trial.steps)
    return last if count == 1 else f"{last} {count}"
