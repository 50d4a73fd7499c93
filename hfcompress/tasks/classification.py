"""What text and image classification share: labels, sets of them, numbers; metrics, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError, ModelError
from hfcompress.measure.bootstrap import Value, compare_units, of_mean
from hfcompress.measure.evaluation import (
    ClassAccuracy,
    Quality,
    class_accuracy,
    compare,
    compute_metric,
    metric_names,
    predicted_classes,
)
from hfcompress.measure.label_sets import (
    LABEL_SET_METRICS,
    f1_of_labels,
    label_counts,
    label_set_metric,
)
from hfcompress.measure.numbers import NUMBER_METRICS, number_metric
from hfcompress.models.loading import AutoClass, Modality, Processor
from hfcompress.models.outputs import KIND_NAMES, PROBLEM_OF_KIND
from hfcompress.tasks.outputs import (
    LabelScore,
    Logits,
    OutputKind,
    label_scores,
    output_kind,
    ranked_labels,
)

if TYPE_CHECKING:  # they import torch, transformers and datasets
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from hfcompress.data.encode import Encoded
    from hfcompress.data.load import Examples


@dataclass(frozen=True)
class Classification:
    """One label, several labels or numbers for each example; a `hfcompress.tasks.task.Task`.

    The data say which: one class for each row, sets of labels, or numbers.

    Args:
        name: as transformers and the hub call it.
        modality: what the models read.
    """

    name: str
    modality: Modality

    def metrics(self, kind: OutputKind = "classification") -> tuple[str, ...]:
        """Return the names of the metrics that need no network; the first is the usual one."""
        if kind == "regression":
            return NUMBER_METRICS
        return LABEL_SET_METRICS if kind == "multi_label" else metric_names()

    def kind(self, config: PreTrainedConfig) -> OutputKind:
        """Return what the logits of a model mean: one class, several labels, or a number.

        Raises:
            ValueError: the config says something unknown.
        """
        return output_kind(config.problem_type, config.num_labels or 0)

    def auto_class(self) -> AutoClass:
        """Return the class that loads its models, as optimum's ``TasksManager`` knows it."""
        from optimum.exporters.tasks import TasksManager

        found: AutoClass = TasksManager.get_model_class_for_task(self.name)
        return found

    def check_head(
        self, config: PreTrainedConfig, model: str, kind: OutputKind = "classification"
    ) -> None:
        """Refuse a head that does not give what the data ask for.

        Raises:
            ModelError: such a head, or a single logit, which is log-odds or a number.
        """
        try:
            own = self.kind(config)
        except ValueError as error:
            raise ModelError(f"model {model!r}: {error}") from None
        single = config.num_labels == 1 and config.problem_type is None
        if own == kind or (single and kind == "regression"):
            return
        says = KIND_NAMES[own] + f" (problem_type {PROBLEM_OF_KIND[own]})"
        says = "a single logit" if single else says
        raise ModelError(
            f"the head of model {model!r} gives {says}; the data ask for {KIND_NAMES[kind]}: give "
            f"a model of that kind, or add a finetune step, which trains a new head"
        )

    def load(
        self,
        config: DataConfig,
        need_train: bool,
        splits: Mapping[str, Dataset] | None = None,
    ) -> Examples:
        """Read the examples, or take those of ``splits``; see `load_examples`."""
        from hfcompress.data.load import examples_of, load_examples

        if splits is None:
            return load_examples(config, self.modality, need_train)
        return examples_of(splits, config, self.modality, need_train)

    def encode(
        self, examples: Examples, rows: Dataset, processor: Processor, max_length: int | None
    ) -> Encoded:
        """Encode one side of the examples with a model's processor; see `encode`."""
        from hfcompress.data.encode import encode

        return encode(examples, rows, processor, max_length)

    def references(self, data: Encoded, labels: Sequence[str] = ()) -> NDArray[np.generic]:
        """Return the class ids [rows]; or, [rows, labels], which labels hold, or numbers."""
        found = data.labels
        if found.ndim == 1:
            return found.astype(np.int64)
        return found.astype(np.float64)

    def metric(self, name: str, outputs: npt.ArrayLike, references: object) -> float:
        """Return a metric's value from logits or class ids; see `compute_metric`."""
        asked = np.asarray(references)
        if asked.ndim == 1:
            return compute_metric(name, outputs, asked)
        return _value(name, outputs, asked)(np.arange(len(asked)))

    def quality(
        self,
        metric: str,
        outputs: npt.ArrayLike,
        references: object,
        dense: npt.ArrayLike | None = None,
    ) -> Quality:
        """Return a metric with its interval, and the comparison with a dense model; see
        `hfcompress.measure.evaluation.compare` and `hfcompress.measure.bootstrap.compare_units`."""
        asked = np.asarray(references)
        if asked.ndim == 1:
            return compare(metric, outputs, asked, dense)
        same = None
        if dense is not None and metric in LABEL_SET_METRICS:
            ours, theirs = np.asarray(outputs) > 0, np.asarray(dense) > 0
            same = float((ours == theirs).all(1).mean())
        return compare_units(
            metric,
            _value(metric, outputs, asked),
            len(asked),
            None if dense is None else _value(metric, dense, asked),
            same,
        )

    def by_class(
        self,
        outputs: npt.ArrayLike,
        references: object,
        dense: npt.ArrayLike,
        names: Sequence[str],
    ) -> list[ClassAccuracy]:
        """Return the recall of each class, or the F1 of each label of several, of both models;
        empty for two classes, of which the metrics say enough, and for numbers."""
        asked = np.asarray(references)
        if asked.ndim == 1 and len(names) > 2:
            return class_accuracy(outputs, asked, dense, names)
        if asked.ndim == 1 or not _is_label_set(asked):
            return []
        truth = asked > 0
        ours, theirs = (
            f1_of_labels(label_counts(np.asarray(given) > 0, truth).sum(0))
            for given in (outputs, dense)
        )
        return [
            {"name": name, "n": int(n), "value": float(own), "dense": float(other), "metric": "f1"}
            for name, n, own, other in zip(names, truth.sum(0), ours, theirs, strict=True)
            if n
        ]

    def units(self, metric: str, outputs: npt.ArrayLike, references: object) -> None:
        """Return None: outputs and references are arrays of rows, and kept as they are."""

    def of_units(self, metric: str, units: NDArray[np.float64]) -> Value:
        """Return the mean of rows' values."""
        return of_mean(units[:, 0])

    def same_units(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
        """Return whether both are of as many rows."""
        return first.shape == second.shape

    def right(self, outputs: npt.ArrayLike, references: object) -> NDArray[np.bool_] | None:
        """Return whether each row's class is the right one; None for several labels or numbers."""
        asked = np.asarray(references)
        return np.asarray(predicted_classes(outputs) == asked) if asked.ndim == 1 else None

    def answer(
        self, logits: Logits, labels: Sequence[str], kind: OutputKind, top_k: int | None
    ) -> list[list[LabelScore]]:
        """Return labels and scores of each example, the highest score first."""
        return [ranked_labels(row, labels, top_k) for row in label_scores(logits, kind)]


def _is_label_set(asked: NDArray[np.generic]) -> bool:
    """Whether the labels are marks: 0 or 1 for each label."""
    return asked.shape[1] > 1 and bool(np.isin(asked, (0, 1)).all())


def _value(name: str, outputs: npt.ArrayLike, asked: NDArray[np.generic]) -> Value:
    """Return a metric of several labels, or of numbers, as a function of rows.

    Raises:
        DataError: outputs of another shape, or not finite.
    """
    found, truth = np.asarray(outputs, np.float64), np.asarray(asked, np.float64)
    if found.shape != truth.shape:
        raise DataError(
            f"got outputs of shape {found.shape} for labels of shape {truth.shape}; use the same "
            f"rows and labels for both"
        )
    if not np.isfinite(found).all():
        raise DataError("some outputs are not finite; check the model's weights and dtype")
    if name in NUMBER_METRICS:
        return number_metric(name, found, truth)
    return label_set_metric(name, found, truth > 0)
