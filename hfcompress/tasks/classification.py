"""What text and image classification share: labels, logits, metrics and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from hfcompress.data.config import DataConfig
from hfcompress.errors import ModelError
from hfcompress.measure.evaluation import (
    ClassAccuracy,
    Quality,
    class_accuracy,
    compare,
    compute_metric,
    metric_names,
    predicted_classes,
)
from hfcompress.models.loading import AutoClass, Modality, Processor
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

_PROBLEMS = {
    "multi_label": "several labels for an example (problem_type multi_label_classification)",
    "regression": "a number (problem_type regression)",
}


@dataclass(frozen=True)
class Classification:
    """One label for each example; a `hfcompress.tasks.task.Task`.

    Args:
        name: as transformers and the hub call it.
        modality: what the models read.
    """

    name: str
    modality: Modality

    def metrics(self, kind: OutputKind = "classification") -> tuple[str, ...]:
        """Return the names of the metrics that need no network; the first is the usual one."""
        return metric_names()

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
        """Refuse a head that does not give one label for each example.

        Raises:
            ModelError: several labels, a number, or a single logit.
        """
        try:
            kind = self.kind(config)
        except ValueError as error:
            raise ModelError(f"model {model!r}: {error}") from None
        if config.num_labels == 1 and kind != "regression":
            says = "a single logit"
        elif kind == "classification":
            return
        else:
            says = _PROBLEMS[kind]
        raise ModelError(
            f"the head of model {model!r} gives {says}; {self.name} measures one label for each "
            f"example, from two or more logits"
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
        """Return the class ids, [rows]."""
        return data.labels

    def metric(self, name: str, outputs: npt.ArrayLike, references: object) -> float:
        """Return a metric's value from logits or class ids; see `compute_metric`."""
        return compute_metric(name, outputs, cast(npt.ArrayLike, references))

    def quality(
        self,
        metric: str,
        outputs: npt.ArrayLike,
        references: object,
        dense: npt.ArrayLike | None = None,
    ) -> Quality:
        """Return a metric with its interval, and the comparison with a dense model; see
        `hfcompress.measure.evaluation.compare`."""
        return compare(metric, outputs, cast(npt.ArrayLike, references), dense)

    def by_class(
        self,
        outputs: npt.ArrayLike,
        references: object,
        dense: npt.ArrayLike,
        names: Sequence[str],
    ) -> list[ClassAccuracy]:
        """Return the recall of each class, of both models; empty for two classes, of which the
        metrics say enough."""
        if len(names) <= 2:
            return []
        return class_accuracy(outputs, cast(npt.ArrayLike, references), dense, names)

    def right(self, outputs: npt.ArrayLike, references: object) -> NDArray[np.bool_]:
        """Return whether each row's class is the right one."""
        return np.asarray(predicted_classes(outputs) == references)

    def answer(
        self, logits: Logits, labels: Sequence[str], kind: OutputKind, top_k: int | None
    ) -> list[list[LabelScore]]:
        """Return labels and scores of each example, the highest score first."""
        return [ranked_labels(row, labels, top_k) for row in label_scores(logits, kind)]
