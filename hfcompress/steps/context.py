"""What a step takes and gives: `ModelState`, `Context` and `StepReport`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from transformers import PreTrainedModel

from hfcompress.calibration.batches import Calibration
from hfcompress.config import StepConfig
from hfcompress.data.columns import column_texts, texts_apart
from hfcompress.data.encode import Encoded, encode_texts
from hfcompress.data.load import Examples
from hfcompress.distillation.text_augmentation import Augmentation, augment_texts
from hfcompress.errors import CalibrationError, DataError
from hfcompress.models.loading import Processor
from hfcompress.models.outputs import VECTORS
from hfcompress.quantization.model import QuantizedModel
from hfcompress.shrinking.vocabulary.tokenizer import CutTokenizer
from hfcompress.tasks.task import Task
from hfcompress.utils import Device, Progress

# Enough for stable second moments of sentence classifiers; more is slower and hardly better.
CALIBRATION_ROWS = 1024
_CALIBRATION_BATCH = 32

Model = PreTrainedModel | QuantizedModel


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Attributes:
        requested_sparsity: share of zeros asked for; None where the step prunes nothing.
        layers: one record for each layer that was pruned: ``name``, ``weights``, ``zeros``,
            ``requested``; None where the step prunes nothing.
        latency: milliseconds of the dense model and of the step's own, where it timed them.
        details: everything else, as plain data.
    """

    requested_sparsity: float | None = None
    layers: tuple[dict[str, Any], ...] | None = None
    latency: dict[str, float] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StepReport:
        """Read what `to_dict` gave, or the ``to_dict()`` of a verb's own report."""
        details = dict(data)
        layers = details.pop("layers", None)
        requested = None if layers is None else details.pop("requested", None)
        latency = details.pop("latency") if details.get("latency") else None
        return cls(requested, None if layers is None else tuple(layers), latency, details)

    def to_dict(self, layers: bool = True) -> dict[str, Any]:
        """As plain data.

        Args:
            layers: with the records of the layers, which a row holds beside its steps.
        """
        data = dict(self.details)
        if self.layers is not None:
            data["requested"] = self.requested_sparsity
            if layers:
                data["layers"] = list(self.layers)
        if self.latency is not None:
            data["latency"] = self.latency
        return data

    def with_details(self, **details: Any) -> StepReport:
        """A copy with further details."""
        return replace(self, details={**self.details, **details})


@dataclass(frozen=True)
class ModelState:
    """A model between two steps of a trial.

    Attributes:
        model: a torch model; after a ``quantize`` step, which is the last one, a quantized one.
        processor: its tokenizer or image processor.
        task: what is asked of it.
        pruned_layers: names of the layers of this model that steps have pruned.
        is_shrunk: a step has made matrices of the model smaller.
        vocabulary_cuts: what steps removed from the vocabulary that the trial started with.
    """

    model: Model
    processor: Processor
    task: Task
    pruned_layers: tuple[str, ...] = ()
    is_shrunk: bool = False
    vocabulary_cuts: tuple[CutTokenizer, ...] = ()

    @property
    def network(self) -> PreTrainedModel:
        """The torch model; of a quantized one, the model that it was made from."""
        return (
            cast(PreTrainedModel, self.model.source)
            if isinstance(self.model, QuantizedModel)
            else self.model
        )

    def copy(self) -> ModelState:
        """The same state with a copy of the model."""
        return replace(self, model=copy.deepcopy(self.model))

    def after(
        self, config: StepConfig, report: StepReport, model: Model | None = None
    ) -> ModelState:
        """The state that a step leaves.

        Args:
            config: of the step.
            report: what it did.
            model: what it made; None where it changed the model in place.
        """
        layers = () if config.replaces_model else self.pruned_layers
        if report.layers is not None:
            layers = tuple(str(layer["name"]) for layer in report.layers)
        return replace(
            self,
            model=self.model if model is None else model,
            pruned_layers=layers,
            is_shrunk=self.is_shrunk or config.shrinks,
        )

    def with_vocabulary(self, cut: CutTokenizer) -> ModelState:
        """The state after a step has cut the vocabulary."""
        cuts = (*self.vocabulary_cuts, cut)
        return replace(self, processor=cut.tokenizer, vocabulary_cuts=cuts)


@dataclass(frozen=True)
class Context:
    """What a step needs besides the model, the same for all trials but for seed and folder.

    Attributes:
        examples: raw rows, columns and labels.
        train: training rows, encoded for the state's processor; None where the data have none.
        eval: measured rows, encoded likewise; never trained on.
        processor: what encoded them.
        seed: for sampling, initialisation and training.
        progress: receives stages, counts and notes.
        dense_model: gives a copy of the model before the trial's first compressing step, which
            reads the rows as they are encoded here.
        max_length: longest token sequence.
        workdir: where a long step keeps checkpoints until it is done; None to keep none.
        logs: the folder of trackers' logs, and what one training is called in it; None without a
            run's folder.
        shared: what steps of several trials share (calibration), by key.
        device: where training happens; None takes a GPU where there is one.
    """

    examples: Examples
    train: Encoded | None
    eval: Encoded
    processor: Any
    seed: int
    progress: Progress
    dense_model: Callable[[], PreTrainedModel]
    max_length: int | None = None
    workdir: Path | None = None
    logs: tuple[Path, str] | None = None
    shared: dict[str, Calibration] = field(default_factory=dict)
    device: Device | None = None

    def training_rows(self, step: str) -> Encoded:
        """The training side.

        Raises:
            DataError: there is none.
        """
        if self.train is None:
            raise DataError(f"{step} needs training rows and the data have none")
        return self.train

    def training_texts(self) -> list[str]:
        """The training rows' texts, to make new ones from.

        Raises:
            DataError: no training rows, or rows of two texts.
        """
        self.training_rows("augmentation")
        if self.examples.kind in VECTORS and self.examples.train is not None:
            return list(dict.fromkeys(column_texts(self.examples.train, self.examples.columns)))
        if self.examples.train is None or len(self.examples.columns) != 1:
            raise DataError("augmentation works on rows of one text; leave it out")
        return column_texts(self.examples.train, self.examples.columns)

    def unmeasured(self, texts: list[str]) -> list[str]:
        """Texts without those that are measured, whatever their case and spaces."""
        return texts_apart(texts, self.examples.eval, self.examples.columns)

    def calibration(self, rows: int | None, seed: int, augmented: int = 0) -> Calibration:
        """Training rows to calibrate on, labels included; the same object for the same choice,
        so that what it collects is shared by every method and sparsity of a sweep.

        Args:
            rows: how many; None draws `CALIBRATION_ROWS`, or all where there are fewer.
            seed: which ones.
            augmented: rows of new text besides, made from the training texts, without labels.

        Raises:
            DataError: no training rows, or augmentation of rows that are not one text.
            CalibrationError: fewer rows than asked.
        """
        data = self.training_rows("calibration")
        count = min(CALIBRATION_ROWS, len(data)) if rows is None else rows
        if count > len(data):
            raise CalibrationError(
                f"calibration asks for {count} rows and the training side has {len(data)}; "
                f"lower calibration_rows or give more data"
            )
        key = f"calibration {id(data)} {count} {seed} {augmented}"
        if key not in self.shared:
            chosen = np.random.default_rng(seed).choice(len(data), count, replace=False)
            parts = [data.batches(_CALIBRATION_BATCH, np.sort(chosen))]
            if augmented:
                parts.append(self._augmented(augmented, seed).batches(_CALIBRATION_BATCH))
            self.shared[key] = Calibration([batch for part in parts for _, batch in part])
        return self.shared[key]

    def _augmented(self, count: int, seed: int) -> Encoded:
        """New texts, made from the training texts."""
        mask = self.processor.mask_token
        methods = [name for name in get_args(Augmentation) if name != "mask" or mask]
        texts = augment_texts(self.training_texts(), count, seed, methods, mask_token=mask or "")
        return encode_texts(texts, self.processor, self.max_length)
