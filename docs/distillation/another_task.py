"""Another task: override ``position_mask``.

Token classification is known, as are question answering, several labels and regression: the task
is found from the student, and padding does not count. Here only the first piece of each word
counts, as in the labels of named entities (-100 elsewhere): the teacher was never trained on what
it says of the other pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hfcompress import DistillationArguments, DistillationTrainer


class FirstPieceTrainer(DistillationTrainer):
    """A tagger that follows its teacher on the first piece of each word."""

    def position_mask(self, inputs: Mapping[str, Any]) -> Tensor:
        """(batch, tokens): where there is a label. Losses are means over these positions, also
        where batches are accumulated."""
        labelled: Tensor = inputs["labels"] != -100
        return labelled


def train(student: nn.Module, teacher: nn.Module, rows: Any, **arguments: Any) -> FirstPieceTrainer:
    """Train a tagger; ``rows`` are model inputs with a label for each token."""
    trainer = FirstPieceTrainer(
        model=student,
        args=DistillationArguments(temperature=2.0, alpha=0.5, **arguments),
        teacher=teacher,
        train_dataset=rows,
    )
    trainer.train()
    return trainer
