"""What the trials of a recipe share: the model loaded once, the data encoded once, the hashes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hfcompress.calibration.batches import Calibration
from hfcompress.config import StepConfig, nearest
from hfcompress.data.encode import Batch, Encoded, text_limit
from hfcompress.data.load import Examples, align_examples, fingerprint, hold_out
from hfcompress.data.windows import window_fields
from hfcompress.errors import ConfigError, HfcompressError, ModelError
from hfcompress.measure.environment import check_device
from hfcompress.measure.metrics import check_metric, trust_metric
from hfcompress.models.loading import LoadedModel, Processor, check_source, load_model
from hfcompress.models.outputs import KIND_NAMES, OutputKind
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.targets import select_targets
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.schema import Recipe, expand
from hfcompress.recipes.step_configs import FinetuneConfig
from hfcompress.steps.context import Context, ModelState
from hfcompress.steps.registry import check_rows, check_step
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.content import content_elsewhere, content_hash
from hfcompress.sweep.timing import check_length
from hfcompress.sweep.tracking import check_trackers
from hfcompress.tasks.registry import find_task, untrained_head
from hfcompress.tasks.sentence_similarity import check_storage
from hfcompress.tasks.task import Task
from hfcompress.training.tracking import LOGS, Tracker
from hfcompress.utils import Fields, Progress

# Raised when a result's meaning (a default, too) changes: older rows and models are not reused.
FORMAT = 1


@dataclass
class Encoding:
    """Rows encoded by one processor, each side when it is first asked for.

    Attributes:
        task: what is asked of the model.
        processor: the model's tokenizer or image processor.
        examples: raw rows.
        max_length: longest token sequence.
        trains: some step reads training rows.
    """

    task: Task
    processor: Processor
    examples: Examples
    max_length: int | None
    trains: bool
    _batches: list[tuple[NDArray[np.int64], Batch]] | None = None

    @cached_property
    def train(self) -> Encoded | None:
        """Training rows; None where no step reads them, or there are none."""
        rows = self.examples.train if self.trains else None
        return None if rows is None else self._encoded(rows)

    @cached_property
    def eval(self) -> Encoded:
        """Measured rows."""
        return self._encoded(self.examples.eval)

    @cached_property
    def choose(self) -> Encoded | None:
        """Rows that candidates are chosen on; None where the data say none."""
        return None if self.examples.choose is None else self._encoded(self.examples.choose)

    def of(self, examples: Examples) -> Encoding:
        """The same of other rows."""
        return Encoding(self.task, self.processor, examples, self.max_length, self.trains)

    def batches(self, size: int) -> list[tuple[NDArray[np.int64], Batch]] | None:
        """The measured rows in batches, made once; None for images, which are too many to keep."""
        if self._batches is None and self.eval.lengths is not None:
            self._batches = list(self.eval.batches(size))
        return self._batches

    def _encoded(self, rows: Dataset) -> Encoded:
        return self.task.encode(self.examples, rows, self.processor, self.max_length)


@dataclass
class Experiment:
    """What all trials of a recipe share, built by `prepare`.

    Attributes:
        recipe: the checked recipe.
        trials: its grid, with content hashes.
        examples: raw rows, labels, what was dropped.
        loaded: the model as the checkpoint has it.
        first: the rows as the loaded model's processor encodes them.
        train_hash: content hash of the training rows.
        eval_hash: content hash of the measured rows.
        progress: receives stages, counts and notes.
        cache: results of training steps.
        trusted: the recipe may run code of models and metrics.
        logs: where trackers keep their logs; None without a run's folder.
        shared: what steps of several trials share.
    """

    recipe: Recipe
    trials: list[Trial]
    examples: Examples
    loaded: LoadedModel
    first: Encoding
    train_hash: str
    eval_hash: str
    progress: Progress
    cache: StepCache
    trusted: bool = False
    logs: Path | None = None
    shared: dict[str, Calibration] = field(default_factory=dict)
    _elsewhere: dict[str, list[str]] = field(default_factory=dict)
    _encodings: dict[tuple[tuple[int, ...], ...], Encoding] = field(default_factory=dict)

    @property
    def train(self) -> Encoded | None:
        """Training rows as the first step reads them, where a step does."""
        return self.first.train

    @property
    def eval(self) -> Encoded:
        """Measured rows as the first model reads them."""
        return self.first.eval

    @property
    def task(self) -> Task:
        """What is asked of the model."""
        return self.first.task

    @property
    def metric(self) -> str:
        """The metric of the curve."""
        return self.recipe.measure.metric or self.task.metrics(self.examples.kind)[0]

    @cached_property
    def references(self) -> Any:
        """What the outputs of the measured rows are compared with, as the task has it."""
        return self.task.references(self.eval, self.examples.labels)

    @cached_property
    def chance(self) -> dict[str, float]:
        """The share of the most frequent class (``majority``), and the metric of always answering
        the same class (``chance``); empty for targets that are not classes."""
        if self.examples.kind != "classification":
            return {}
        labels, metric = self.references.astype(np.int64), self.metric
        if labels.ndim != 1 or labels.min() < 0:
            return {}
        counts, task = np.bincount(labels), self.task
        # Class 1 is what metrics of one class (f1, recall) are of.
        answers = {int(counts.argmax()), min(1, len(counts) - 1)}
        majority = float(counts.max() / len(labels))
        try:
            values = [
                task.metric(metric, np.full(len(labels), one, np.float32), labels)
                for one in answers
            ]
        except HfcompressError:  # a metric that takes no class ids
            return {"majority": majority}
        return {"majority": majority, "chance": max(values)}

    def hashed(self, trial: Trial) -> Trial:
        """The trial with its content hashes."""
        recipe = self.recipe
        root = [
            FORMAT, self.loaded.fingerprint, self.train_hash, self.task.name,
            recipe.data.max_length, trial.seed,
        ]  # fmt: skip
        if windowed := window_fields(recipe.data):
            root.append(windowed)
        prefixes = [content_hash(root)]
        for step in trial.steps:
            fields = step.config.non_default_fields()
            elsewhere = self._read_elsewhere(step.config)
            prefixes.append(content_hash([prefixes[-1], step.name, fields, *elsewhere]))
        measured = recipe.measure.replace(metric=self.metric).non_default_fields()
        stored = [way.to_dict() for way in recipe.embedding]
        parts = [prefixes[-1], self.eval_hash, measured, *([stored] if stored else [])]
        return replace(trial, prefixes=tuple(prefixes), row_hash=content_hash(parts))

    def _read_elsewhere(self, config: StepConfig) -> list[str]:
        key = content_hash([config.step_name, config.non_default_fields()])
        if key not in self._elsewhere:
            self._elsewhere[key] = content_elsewhere(config, self.examples)
        return self._elsewhere[key]

    def start(self, trial: Trial) -> ModelState:
        """What the trial starts from, with a copy of the model."""
        if self.loaded.new_head and trial.seed != self.recipe.seed:
            recipe, examples = self.recipe, self.examples  # the trial's own seed draws a new head
            model = load_model(
                recipe.model, self.task, examples.labels, trial.seed, kind=examples.kind
            ).model
        else:
            model = copy.deepcopy(self.loaded.model)
        return ModelState(model, self.loaded.processor, self.task)

    def encoding(self, state: ModelState) -> Encoding:
        """The rows as a state's processor encodes them; encoded once for equal vocabularies."""
        if not state.vocabulary_cuts:
            return self.first
        key = tuple(cut.kept for cut in state.vocabulary_cuts)
        if key not in self._encodings:
            self._encodings[key] = replace(self.first.of(self.examples), processor=state.processor)
        return self._encodings[key]

    def context(
        self,
        trial: Trial,
        place: int,
        state: ModelState,
        dense_model: Callable[[], PreTrainedModel],
    ) -> Context:
        """What the step after the first ``place`` needs besides the state that it begins with."""
        encoding = self.encoding(state)
        last = place >= len(trial.steps)
        key = None if last else trial.prefixes[place + 1]
        trains = not last and trial.steps[place].config.trains
        return Context(
            examples=self.examples,
            dense_model=dense_model,
            max_length=encoding.max_length,
            train=encoding.train,
            eval=encoding.eval,
            processor=encoding.processor,
            seed=trial.seed,
            progress=self.progress,
            workdir=self.cache.partial(key, self.progress) if key and trains else None,
            logs=(self.logs, key) if key and self.logs is not None else None,
            shared=self.shared,
            device=self.recipe.device,
        )


def prepare(
    recipe: Recipe,
    progress: Progress,
    cache: StepCache,
    loaded: LoadedModel | None = None,
    splits: Mapping[str, Dataset] | None = None,
    trust_remote_code: bool = False,
    output: Path | None = None,
) -> Experiment:
    """Load and check everything that a recipe names; nothing is written.

    Args:
        recipe: what is to be done.
        progress: receives stages, counts and notes.
        cache: results of training steps.
        loaded: a model in the place of the one that the recipe names.
        splits: rows by split in the place of those that the recipe names.
        trust_remote_code: run code of models and metrics where the recipe asks for it, too.
        output: the run's folder, where trackers keep their logs.

    Raises:
        BadInputError: a source, device, column, label, split, metric or target that does not fit.
    """
    check_trust(recipe, trust_remote_code)
    check_device(recipe.device)
    trials = expand(recipe)
    check_trackers([*recipe.track, *_trackers(trials)], output)
    task = find_task(recipe.task)
    if loaded is None:
        check_source(recipe.model)  # the cheap check first: a wrong path shows at once
    need_rows = any(step.config.needs_rows for trial in trials for step in trial.steps)
    progress.stage("reading the data")
    reads_training = need_rows or recipe.data.choose is not None
    examples = hold_out(task.load(recipe.data, reads_training, splits), recipe.data)
    _check_metrics(recipe, task, examples.kind)
    for reason, count in examples.dropped.items():
        progress.note(f"{count:,} rows left out ({reason})")
    progress.stage("loading the model")
    if loaded is None:
        trains = all(trial.trains_after(0) for trial in trials)
        loaded = load_model(
            recipe.model, task, examples.labels, recipe.seed, new_head=trains, kind=examples.kind
        )
    task.check_head(loaded.model.config, recipe.model.name, examples.kind)
    _check_model(recipe, loaded, trials, 0 if examples.train is None else len(examples.train))
    examples = align_examples(examples, loaded, recipe.model.name)
    for note in (*examples.notes, *touched_layers(loaded.model, trials)):
        progress.note(note)
    progress.stage("encoding the data")
    longest = text_limit(recipe.data.max_length, loaded.model)
    first = Encoding(task, loaded.processor, examples, longest, need_rows)
    for side in (first.train, first.eval):  # now, so that what cannot be encoded shows at once
        for note in () if side is None else side.notes:
            progress.note(note)
    experiment = Experiment(
        recipe=recipe,
        trials=[],
        examples=examples,
        loaded=loaded,
        first=first,
        train_hash=fingerprint(examples.train if need_rows else None, examples.columns),
        eval_hash=fingerprint(examples.eval, examples.columns),
        progress=progress,
        cache=cache,
        trusted=trust_remote_code,
        logs=None if output is None else output / LOGS,
    )
    experiment.trials = [experiment.hashed(trial) for trial in trials]
    return experiment


def _trackers(trials: list[Trial]) -> list[Tracker]:
    """The trackers of the steps that train."""
    configs = [step.config for trial in trials for step in trial.steps]
    parts = [
        part for config in configs
        for part in (config, *(getattr(config, name, None) for name in ("training", "recover")))
        if isinstance(part, FinetuneConfig)
    ]  # fmt: skip
    return [name for name in dict.fromkeys(part.track for part in parts) if name is not None]


def touched_layers(model: PreTrainedModel, trials: list[Trial]) -> list[str]:
    """One sentence for each way in which the trials choose layers: which, and how many weights."""
    choices = {
        (step.name, step.config.targets, step.config.exclude)
        for trial in trials
        for step in trial.steps
        if isinstance(step.config, PruningConfig)
    }
    notes = []
    for name, targets, exclude in sorted(choices, key=str):
        modules = select_targets(model, targets, exclude)
        weights = sum(module.get_parameter("weight").numel() for module in modules.values())
        patterns = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", layer) for layer in modules)
        shown = ", ".join([*patterns][:8]) + (", ..." if len(patterns) > 8 else "")
        notes.append(f"{name} touches {len(modules)} layers, {weights:,} weights: {shown}")
    return notes[:3]


def check_trust(recipe: Recipe, trusted: bool) -> None:
    """Refuse a recipe that asks to run code of models or metrics, unless the caller allows it.

    Raises:
        ConfigError: the recipe asks and the caller does not allow it.
    """
    asking = None if trusted else next(_asking(recipe.to_dict()), None)
    if asking is not None:
        raise ConfigError(
            f"{asking}: true runs code that is not a part of this recipe; if you trust it, allow "
            f"it: --trust-remote-code (in Python: trust_remote_code=True)"
        )


def _asking(data: object, path: str = "") -> Iterator[str]:
    """Paths of the fields of plain data that ask to run code."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            if name == "trust_remote_code" and value:
                yield f"{path}{name}"
            yield from _asking(value, f"{path}{name}.")
    elif isinstance(data, list):
        for place, value in enumerate(data):
            yield from _asking(value, f"{path.removesuffix('.')}[{place}].")


def _check_metrics(recipe: Recipe, task: Task, kind: OutputKind) -> None:
    known = task.metrics(kind)
    for name in (recipe.measure.metric or known[0], *recipe.measure.also):
        if name in known:
            continue
        if kind != "classification":
            raise ConfigError(
                f"the metric {name!r} is not one of {task.name} ({KIND_NAMES[kind]})"
                f"{nearest(name, list(known))}; use one of {', '.join(known)}"
            )
        if recipe.measure.trust_remote_code:
            trust_metric(name)
        else:
            check_metric(name)
        task.metric(
            name, np.eye(2, dtype=np.float32)[[0, 1, 1]], [0, 1, 1]
        )  # asks the hub, or says it cannot


def _check_model(recipe: Recipe, loaded: LoadedModel, trials: list[Trial], rows: int) -> None:
    """Refuse steps that do not fit the model before any of them runs."""
    check_storage(loaded.model, recipe.embedding)
    check_length(loaded.model, recipe.measure.latency)
    checked: set[str] = set()
    for trial in trials:
        if loaded.new_head and not trial.trains_after(0):
            why = untrained_head(loaded.model.config, recipe.model.name, find_task(recipe.task))
            raise ModelError(
                f"{why}; add a finetune step, or give a model fine-tuned for this task"
            )
        for step in trial.steps:
            key = content_hash([step.name, _checked_fields(step.config)])
            if key not in checked:  # 10,000 walks through a model's modules take a minute
                check_step(loaded.model, step.config)
            checked.add(key)
            check_rows(loaded.model, step.config, rows)


def _checked_fields(config: StepConfig) -> Fields:
    """The fields that decide whether a step fits a model: a sparsity fits any."""
    if isinstance(config, PruningConfig):
        return {"targets": config.targets, "exclude": config.exclude}
    return config.non_default_fields()
