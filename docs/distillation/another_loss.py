"""Another loss: override ``soft_loss``.

The divergence is taken the other way round here, KL(student || teacher), so that the student would
rather leave a class of the teacher out than make one up (MiniLLM, 2306.08543). Everything else
stays: weights, schedules, accumulation, logs, layers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from hfcompress import DistillationArguments, DistillationTrainer


class ReverseTrainer(DistillationTrainer):
    """A student that follows its teacher by the reverse divergence."""

    def soft_loss(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
    ) -> Tensor:
        """``T^2 KL(student || teacher)``, mean over the rows."""
        temperature = self.teaching.loss.temperature  # what the schedule has reached
        student = F.log_softmax(student_logits / temperature, dim=-1)
        teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
        divergence = (student.exp() * (student - teacher)).sum(-1)
        return divergence.mean() * temperature**2


def train(student: nn.Module, teacher: nn.Module, rows: Any, **arguments: Any) -> ReverseTrainer:
    """Train a classifier; ``rows`` are model inputs with labels."""
    trainer = ReverseTrainer(
        model=student,
        args=DistillationArguments(temperature=2.0, alpha=0.9, **arguments),
        teacher=teacher,
        train_dataset=rows,
    )
    trainer.train()
    return trainer
