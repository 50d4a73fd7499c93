"""Everything that the trials of a recipe share: data encoded once, the model loaded once."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hfcompress.data.encode import Batch, Encoded, encode
from hfcompress.data.load import Examples, examples_of, fingerprint, load_examples
from hfcompress.errors import ModelError
from hfcompress.measure.evaluation import compute_metric, metric_names
from hfcompress.models.architectures import select_modules
from hfcompress.models.loading import LoadedModel, check_source, load_model, task_modality
from hfcompress.pruning.config import PruningConfig
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.schema import Recipe, expand
from hfcompress.recipes.step_configs import Step
from hfcompress.shrinking.vocabulary.shrink import keep_tokens
from hfcompress.shrinking.vocabulary.tokenizer import CutTokenizer
from hfcompress.steps.context import Context
from hfcompress.steps.registry import kind_of
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.timing import check_length
from hfcompress.utils import Progress


@dataclass
class Encoding:
    """Rows encoded by one processor, each side when it is first asked for.

    Attributes:
        processor: the model's tokenizer or image processor.
        examples: raw rows.
        max_length: longest token sequence.
        trains: some step reads training rows.
    """

    processor: Any
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

    def batches(self, size: int) -> list[tuple[NDArray[np.int64], Batch]] | None:
        """The measured rows in batches, made once; None for images, which are too many to keep."""
        if self._batches is None and self.eval.lengths is not None:
            self._batches = list(self.eval.batches(size))
        return self._batches

    def _encoded(self, rows: Dataset) -> Encoded:
        return encode(self.examples, rows, self.processor, self.max_length)


@dataclass
class Encodings:
    """The encoding after each prefix of steps.

    Attributes:
        first: what all trials start from.
    """

    first: Encoding
    _cuts: dict[str, CutTokenizer] = field(default_factory=dict)
    _made: dict[str, Encoding] = field(default_factory=dict)

    def cut(self, prefix: str, tokenizer: CutTokenizer) -> None:
        """Note that the step which makes ``prefix`` has given its model another tokenizer."""
        self._cuts[prefix] = tokenizer

    def after(self, prefixes: list[str]) -> Encoding:
        """The encoding for the model after the last of some prefixes, all from the start on."""
        last = next((prefix for prefix in reversed(prefixes) if prefix in self._cuts), None)
        if last is None:
            return self.first
        if last not in self._made:
            processor = self._cuts[last].tokenizer
            self._made[last] = replace(self.first, processor=processor, _batches=None)
        return self._made[last]

    def adapt(self, model: PreTrainedModel, prefixes: list[str]) -> PreTrainedModel:
        """Make a model of before read rows of after: cut its tokens as these steps did."""
        for prefix in prefixes:
            if prefix in self._cuts:
                keep_tokens(model, self._cuts[prefix].kept)
        return model


@dataclass
class Workbench:
    """The shared things, built by `prepare`.

    Attributes:
        recipe: the checked recipe.
        trials: its grid.
        examples: raw rows, labels, what was dropped.
        loaded: the model as the checkpoint has it.
        encodings: the rows as the tokenizer of each model encodes them.
        train_hash: what the training rows say.
        eval_hash: what the measured rows say.
        progress: is told what happens.
        cache: results of training steps.
        shared: what steps of several trials share.
    """

    recipe: Recipe
    trials: list[Trial]
    examples: Examples
    loaded: LoadedModel
    encodings: Encodings
    train_hash: str
    eval_hash: str
    progress: Progress
    cache: StepCache
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def train(self) -> Encoded | None:
        """Encoded training rows as the first step reads them, where a step does."""
        return self.encodings.first.train

    @property
    def eval(self) -> Encoded:
        """Encoded measured rows as the first model reads them."""
        return self.encodings.first.eval

    def encoding(self, trial: Trial, place: int) -> Encoding:
        """The rows as the model after the first ``place`` steps reads them."""
        return self.encodings.after(self.prefixes(trial)[: place + 1])

    def prefixes(self, trial: Trial) -> list[str]:
        """Hashes of the trial's model before and after each of its steps."""
        root = root_hash(self.recipe, self.loaded.fingerprint, self.train_hash, trial.seed)
        return prefix_hashes(root, trial.steps)

    def row_hash(self, trial: Trial) -> str:
        """The content hash that names the trial's row."""
        return row_hash(self.recipe, self.prefixes(trial)[-1], self.eval_hash)

    def start(self, trial: Trial) -> PreTrainedModel:
        """A fresh copy of the model that the trial starts from."""
        if self.loaded.new_head and trial.seed != self.recipe.seed:
            recipe = self.recipe  # a new head is drawn by the trial's own seed
            return load_model(recipe.model, recipe.task, self.examples.labels, trial.seed).model
        return copy.deepcopy(self.loaded.model)

    def context(
        self,
        trial: Trial,
        prefix: str,
        dense_model: Callable[[], PreTrainedModel],
        pruned: tuple[str, ...] | None,
    ) -> Context:
        """The surroundings of the step that makes ``prefix``."""
        prefixes = self.prefixes(trial)
        before = prefixes[: prefixes.index(prefix)] if prefix in prefixes else prefixes[:1]
        encoding = self.encodings.after(before)
        return Context(
            examples=self.examples,
            dense_model=dense_model,
            max_length=self.recipe.data.max_length,
            pruned=pruned,
            train=encoding.train,
            eval=encoding.eval,
            processor=encoding.processor,
            seed=trial.seed,
            progress=self.progress,
            workdir=self.cache.partial(prefix),
            shared=self.shared,
            replace_tokenizer=lambda cut: self.encodings.cut(prefix, cut),
        )


def prepare(
    recipe: Recipe,
    progress: Progress,
    cache: StepCache,
    loaded: LoadedModel | None = None,
    splits: Mapping[str, Dataset] | None = None,
) -> Workbench:
    """Load and check everything that a recipe names; nothing is written.

    Args:
        recipe: what is to be done.
        progress: is told what happens.
        cache: results of training steps.
        loaded: a model in the place of the one that the recipe names.
        splits: rows by split in the place of those that the recipe names.

    Raises:
        BadInputError: a source, column, label, split, metric or target that does not fit.
    """
    trials = expand(recipe)
    _check_metrics(recipe)
    if loaded is None:
        check_source(recipe.model)  # the cheap check first: a wrong path shows at once
    need_rows = any(kind_of(s.config).needs_rows(s.config) for t in trials for s in t.steps)
    progress.stage("reading the data")
    modality = task_modality(recipe.task)
    if splits is None:
        examples = load_examples(recipe.data, modality, need_rows)
    else:
        examples = examples_of(splits, recipe.data, modality, need_rows)
    for reason, count in examples.dropped.items():
        progress.note(f"{count:,} rows left out ({reason})")
    for note in examples.notes:
        progress.note(note)
    progress.stage("loading the model")
    if loaded is None:
        loaded = load_model(recipe.model, recipe.task, examples.labels, recipe.seed)
    _check_model(recipe, loaded, trials)
    for note in touched_layers(loaded.model, trials):
        progress.note(note)
    progress.stage("encoding the data")
    train = examples.train if need_rows else None
    first = Encoding(loaded.processor, examples, recipe.data.max_length, need_rows)
    _ = first.train, first.eval  # now, so that what cannot be encoded shows at once
    return Workbench(
        recipe=recipe,
        trials=trials,
        examples=examples,
        loaded=loaded,
        encodings=Encodings(first),
        train_hash=fingerprint(train, examples.columns),
        eval_hash=fingerprint(examples.eval, examples.columns),
        progress=progress,
        cache=cache,
    )


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
        modules = select_modules(model, targets, exclude)
        weights = sum(module.get_parameter("weight").numel() for module in modules.values())
        patterns = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", layer) for layer in modules)
        shown = ", ".join([*patterns][:8]) + (", ..." if len(patterns) > 8 else "")
        notes.append(f"{name} touches {len(modules)} layers, {weights:,} weights: {shown}")
    return notes[:3]


def _check_metrics(recipe: Recipe) -> None:
    for name in (recipe.measure.metric, *recipe.measure.also):
        if name not in metric_names():
            compute_metric(name, [0, 1, 1], [0, 1, 1])  # asks the hub, or says it cannot


def _check_model(recipe: Recipe, loaded: LoadedModel, trials: list[Trial]) -> None:
    """Refuse steps that do not fit the model before any of them runs."""
    check_length(loaded.model, recipe.measure.latency)
    for trial in trials:
        trained = any(kind_of(step.config).trains for step in trial.steps)
        if loaded.new_head and not trained:
            raise ModelError(
                f"model {recipe.model.name!r} has no trained classification head for these "
                f"labels; add a finetune step, or give a model fine-tuned for this task"
            )
        for step in trial.steps:
            kind_of(step.config).check(loaded.model, step.config)


# Raised when the meaning of a result changes (a default, too), so that older rows and models are
# not reused.
FORMAT = 1


def content_hash(data: Any) -> str:
    """Hash of plain data; the order of keys does not matter."""
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def root_hash(recipe: Recipe, model: str, train: str, seed: int) -> str:
    """Hash of where a trial starts: model, training rows, task, how text is cut, seed."""
    return content_hash([FORMAT, model, train, recipe.task, recipe.data.max_length, seed])


def prefix_hashes(root: str, steps: Sequence[Step]) -> list[str]:
    """Hash of the model before the first step, after the first, after the second ..."""
    hashes = [root]
    for step in steps:
        hashes.append(content_hash([hashes[-1], step.name, step.config.non_default_fields()]))
    return hashes


def row_hash(recipe: Recipe, last_prefix: str, measured: str) -> str:
    """Hash of a row: the final model, the rows it is measured on, and what is measured."""
    return content_hash([last_prefix, measured, recipe.measure.non_default_fields()])
