"""What a step may need besides the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from transformers import PreTrainedModel

from hfcompress.calibration.batches import Calibration
from hfcompress.data.encode import Encoded, encode_texts
from hfcompress.data.load import Examples
from hfcompress.distillation.text_augmentation import Augmentation, augment_texts
from hfcompress.errors import CalibrationError, DataError
from hfcompress.shrinking.vocabulary.tokenizer import CutTokenizer
from hfcompress.utils import Progress

# Enough for stable second moments of sentence classifiers; more is slower and hardly better.
CALIBRATION_ROWS = 1024
_CALIBRATION_BATCH = 32


@dataclass(frozen=True)
class Context:
    """The surroundings of a step, the same for all trials but for ``seed`` and ``workdir``.

    Attributes:
        examples: raw rows, columns and labels.
        train: encoded training rows; None where the data have a measuring side only.
        eval: encoded rows that are measured, never trained on.
        processor: the model's tokenizer or image processor.
        seed: of everything random in the step.
        progress: is told how far the step is.
        dense_model: gives a copy of the model before the trial's first compressing step.
        max_length: longest token sequence.
        pruned: names of the layers that earlier steps pruned; None where none did.
        shrunk: an earlier step has made matrices of the model smaller.
        workdir: where a long step keeps checkpoints until it is done; None to keep none.
        shared: what steps of several trials share (calibration), by key.
        replace_tokenizer: told by a step that gives the model another tokenizer, so that rows
            are encoded anew for what follows.
    """

    examples: Examples
    train: Encoded | None
    eval: Encoded
    processor: Any
    seed: int
    progress: Progress
    dense_model: Callable[[], PreTrainedModel]
    max_length: int | None = None
    pruned: tuple[str, ...] | None = None
    shrunk: bool = False
    workdir: Path | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    replace_tokenizer: Callable[[CutTokenizer], None] = lambda cut: None

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
        if self.examples.train is None or len(self.examples.columns) != 1:
            raise DataError("augmentation works on rows of one text; leave it out")
        return list(self.examples.train[self.examples.columns[0]])

    def unmeasured(self, texts: list[str]) -> list[str]:
        """Texts without those that are measured, whatever their case and spaces."""
        measured = {
            _folded(text) for column in self.examples.columns for text in self.examples.eval[column]
        }
        return [text for text in texts if _folded(text) not in measured]

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
        kept: Calibration = self.shared[key]
        return kept

    def _augmented(self, count: int, seed: int) -> Encoded:
        """New texts, made from the training texts."""
        mask = self.processor.mask_token
        methods = [name for name in get_args(Augmentation) if name != "mask" or mask]
        texts = augment_texts(self.training_texts(), count, seed, methods, mask_token=mask or "")
        return encode_texts(texts, self.processor, self.max_length)


def _folded(text: str) -> str:
    return "".join(text.split()).lower()


Done = dict[str, Any]
