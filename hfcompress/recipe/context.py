"""What a step may need besides the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.encode import Batch, Encoded
from hfcompress.errors import CalibrationError, DataError
from hfcompress.recipe.progress import Progress


@dataclass(frozen=True)
class Context:
    """The surroundings of a step, the same for all trials but for ``seed`` and ``workdir``.

    Attributes:
        train: encoded training rows; None where the data have a measuring side only.
        eval: encoded rows that are measured, never trained on.
        processor: the model's tokenizer or image processor.
        seed: of everything random in the step.
        progress: is told how far the step is.
        workdir: where a long step keeps checkpoints until it is done; None to keep none.
        shared: what steps of several trials share (calibration), by key.
    """

    train: Encoded | None
    eval: Encoded
    processor: Any
    seed: int
    progress: Progress
    workdir: Path | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    def training_rows(self, step: str) -> Encoded:
        """The training side.

        Raises:
            DataError: there is none.
        """
        if self.train is None:
            raise DataError(f"{step} needs training rows and the data have none")
        return self.train

    def calibration_batches(self, samples: int, batch_size: int, seed: int) -> list[Batch]:
        """Training rows to calibrate on, drawn by seed, labels included.

        Raises:
            DataError: no training rows.
            CalibrationError: fewer rows than asked.
        """
        rows = self.training_rows("calibration")
        if samples > len(rows):
            raise CalibrationError(
                f"calibration asks for {samples} rows and the training side has {len(rows)}; "
                f"lower the number or give more data"
            )
        chosen = np.random.default_rng(seed).choice(len(rows), samples, replace=False)
        return [batch for _, batch in rows.batches(batch_size, np.sort(chosen))]
