"""Another task: override ``position_mask``.

Token classification is known, as are question answering, several labels and regression: the task
is found from the student, and neither padding nor tokens without a label (-100) count. Here every
piece of a word counts, as for a teacher that was trained on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hfcompress import DistillationArguments, DistillationTrainer


class EveryPieceTrainer(DistillationTrainer):
    """A tagger that follows its teacher on every piece of each word."""

    def position_mask(self, inputs: Mapping[str, Any]) -> Tensor:
        """(batch, tokens): where there is text. Losses are means over these positions, also
        where batches are accumulated."""
        text: Tensor = inputs["attention_mask"] != 0
        return text


def train(student: nn.Module, teacher: nn.Module, rows: Any, **arguments: Any) -> EveryPieceTrainer:
    """Train a tagger; ``rows`` are model inputs with a label for each token."""
    trainer = EveryPieceTrainer(
        model=student,
        args=DistillationArguments(temperature=2.0, alpha=0.5, **arguments),
        teacher=teacher,
        train_dataset=rows,
    )
    trainer.train()
    return trainer
