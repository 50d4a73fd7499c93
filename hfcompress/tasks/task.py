"""``Task``: what everything else asks when it must know what a model's output means.

What a model says of a data set is one table of ``outputs`` [outputs, columns]: a row of logits for
each example, or for each word, token or text that counts (`Encoded.counts`). What it is compared
with are the task's own ``references``, made from the encoded rows; nobody else looks into them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from hfcompress.data.config import DataConfig
from hfcompress.measure.bootstrap import Value, compare_units
from hfcompress.measure.evaluation import ClassAccuracy, Quality
from hfcompress.models.loading import AutoClass, Modality, Processor
from hfcompress.tasks.outputs import OutputKind

if TYPE_CHECKING:  # they import torch, transformers and datasets
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from hfcompress.data.encode import Encoded
    from hfcompress.data.load import Examples


class Task(Protocol):
    """One kind of question that models answer; a file of this folder for each."""

    @property
    def name(self) -> str:
        """As transformers and the hub call it."""
        ...

    @property
    def modality(self) -> Modality:
        """What its models read."""
        ...

    def metrics(self, kind: OutputKind) -> tuple[str, ...]:
        """Return the names of the metrics that need no network; the first is the usual one.

        Args:
            kind: what the outputs mean, of tasks whose models may give several.
        """
        ...

    def kind(self, config: PreTrainedConfig) -> OutputKind:
        """Return what the logits of a model mean.

        Raises:
            ValueError: the config says something unknown.
        """
        ...

    def auto_class(self) -> AutoClass:
        """Return the class that loads its models."""
        ...

    def check_head(self, config: PreTrainedConfig, model: str, kind: OutputKind) -> None:
        """Refuse a model whose head answers another question.

        Args:
            config: the model's.
            model: its name, for the message.
            kind: what the data ask.

        Raises:
            ModelError: such a model; the sentence names what its head does.
        """
        ...

    def load(
        self,
        config: DataConfig,
        need_train: bool,
        splits: Mapping[str, Dataset] | None = None,
    ) -> Examples:
        """Read the examples: which columns are inputs and which the label, guessed or said.

        Args:
            config: which data.
            need_train: a step trains or calibrates, so a training side must exist.
            splits: rows by split in the place of those that the config names.

        Raises:
            SourceError, DataError: as `hfcompress.data.load.load_examples`.
        """
        ...

    def encode(
        self, examples: Examples, rows: Dataset, processor: Processor, max_length: int | None
    ) -> Encoded:
        """Encode one side of the examples with a model's processor.

        Args:
            examples: say which columns hold the input.
            rows: ``examples.train`` or ``examples.eval``.
            processor: the model's tokenizer or image processor.
            max_length: longest token sequence; the model's own limit where None.
        """
        ...

    def references(self, data: Encoded, labels: Sequence[str]) -> object:
        """Return what the outputs of encoded rows are compared with.

        Args:
            data: the rows.
            labels: label names in order.
        """
        ...

    def metric(self, name: str, outputs: NDArray[np.float32], references: object) -> float:
        """Return a metric's value.

        Raises:
            SourceError, DataError: the metric cannot be computed.
        """
        ...

    def quality(
        self,
        metric: str,
        outputs: NDArray[np.float32],
        references: object,
        dense: NDArray[np.float32] | None = None,
    ) -> Quality:
        """Return a metric with interval and standard error, and the comparison with a dense
        model: agreement, paired test, drop.

        Args:
            metric: its name.
            outputs: the model's, for every measured row.
            references: what they are compared with.
            dense: the dense model's outputs for the same rows.
        """
        ...

    def by_class(
        self,
        outputs: NDArray[np.float32],
        references: object,
        dense: NDArray[np.float32],
        names: Sequence[str],
    ) -> list[ClassAccuracy]:
        """Return a metric of each class, of both models; empty where that says nothing new."""
        ...

    def units(
        self, metric: str, outputs: NDArray[np.float32], references: object
    ) -> NDArray[np.float64] | None:
        """Return what a metric is computed from, [units, parts]: a row for each sentence, question,
        pair or query; None where outputs and references are kept as they are.

        Rows of two models on the same data are compared by it, whatever their tokenizers.
        """
        ...

    def of_units(self, metric: str, units: NDArray[np.float64]) -> Value:
        """Return the metric as a function of the numbers of units, from what `units` gave."""
        ...

    def same_units(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
        """Return whether what `units` gave for two models is of the same units."""
        ...

    def right(self, outputs: NDArray[np.float32], references: object) -> NDArray[np.bool_] | None:
        """Return whether each answer is right; None where answers are right by degrees."""
        ...


class ByUnits(ABC):
    """What tasks share whose metric is computed from numbers of units: sentences, questions, pairs.

    A task says what these numbers are (`units`), what the metric makes of them (`of_units`), and
    what it means that two models agree.
    """

    @abstractmethod
    def units(
        self, metric: str, outputs: NDArray[np.float32], references: object
    ) -> NDArray[np.float64]:
        """See `Task.units`."""

    @abstractmethod
    def of_units(self, metric: str, units: NDArray[np.float64]) -> Value:
        """See `Task.of_units`."""

    @abstractmethod
    def agreement(
        self, outputs: NDArray[np.float32], dense: NDArray[np.float32], references: object
    ) -> float:
        """Return the share of the answers that both models give."""

    def same_units(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
        """Return whether both are of as many units."""
        return first.shape == second.shape

    def metric(self, name: str, outputs: NDArray[np.float32], references: object) -> float:
        """Return a metric's value.

        Raises:
            DataError: another metric, or outputs that do not fit.
        """
        units = self.units(name, outputs, references)
        return self.of_units(name, units)(np.arange(len(units)))

    def quality(
        self,
        metric: str,
        outputs: NDArray[np.float32],
        references: object,
        dense: NDArray[np.float32] | None = None,
    ) -> Quality:
        """Return a metric with its interval over units, and the comparison with a dense model.

        Raises:
            DataError: another metric, or outputs that do not fit.
        """
        units, other, same = self.units(metric, outputs, references), None, None
        if dense is not None:
            other = self.of_units(metric, self.units(metric, dense, references))
            same = self.agreement(outputs, dense, references)
        return compare_units(metric, self.of_units(metric, units), len(units), other, same)

    def by_class(
        self,
        outputs: NDArray[np.float32],
        references: object,
        dense: NDArray[np.float32],
        names: Sequence[str],
    ) -> list[ClassAccuracy]:
        """Return nothing: there are no classes."""
        return []

    def right(self, outputs: NDArray[np.float32], references: object) -> NDArray[np.bool_] | None:
        """Return None: a unit is right by degrees."""
        return None
