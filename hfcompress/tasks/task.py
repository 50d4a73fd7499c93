"""``Task``: what everything else asks when it must know what a model's output means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy.typing as npt

from hfcompress.data.config import DataConfig
from hfcompress.measure.evaluation import ClassAccuracy, Quality
from hfcompress.models.loading import AutoClass, Modality, Processor
from hfcompress.tasks.outputs import LabelScore, Logits, OutputKind

if TYPE_CHECKING:  # they import torch, transformers and datasets
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedConfig

    from hfcompress.data.encode import Batch, Encoded
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

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that need no network; the first is the usual one."""
        ...

    def auto_class(self) -> AutoClass:
        """Return the class that loads its models."""
        ...

    def check_head(self, config: PreTrainedConfig, model: str) -> None:
        """Refuse a model whose head answers another question.

        Args:
            config: the model's.
            model: its name, for the message.

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

    def outputs(self, model_outputs: object) -> dict[str, Tensor]:
        """Return what a model's outputs hold for this task, by name.

        Raises:
            ModelError: outputs that hold something else.
        """
        ...

    def targets(self, batch: Batch) -> Tensor:
        """Return what the outputs are compared with.

        Raises:
            DataError: a batch without labels.
        """
        ...

    def mask(self, batch: Batch) -> Tensor | None:
        """Return which outputs count, non-zero where they do; None where all of them do."""
        ...

    def metric(self, name: str, outputs: npt.ArrayLike, targets: npt.ArrayLike) -> float:
        """Return a metric's value.

        Raises:
            SourceError, DataError: as `hfcompress.measure.evaluation.compute_metric`.
        """
        ...

    def quality(
        self,
        metric: str,
        outputs: npt.ArrayLike,
        targets: npt.ArrayLike,
        dense: npt.ArrayLike | None = None,
    ) -> Quality:
        """Return a metric with interval and standard error, and the comparison with a dense
        model: agreement, paired test, drop.

        Args:
            metric: its name.
            outputs: the model's, for every measured row.
            targets: what they are compared with.
            dense: the dense model's outputs for the same rows.
        """
        ...

    def by_class(
        self,
        outputs: npt.ArrayLike,
        targets: npt.ArrayLike,
        dense: npt.ArrayLike,
        names: Sequence[str],
    ) -> list[ClassAccuracy]:
        """Return the recall of each class, of both models; empty where that says nothing new."""
        ...

    def answer(
        self, logits: Logits, labels: Sequence[str], kind: OutputKind, top_k: int | None
    ) -> list[list[LabelScore]]:
        """Return what ``transformers.pipeline`` answers, a list for each example.

        Args:
            logits: [examples, labels].
            labels: names by id.
            kind: what the logits mean.
            top_k: how many labels for each example; None gives all.
        """
        ...
