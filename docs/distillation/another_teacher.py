"""Another teacher: give a function of the batch.

It gets the batch as tensors, without labels, and returns logits (a tensor or an array), or
``TeacherOutputs`` where layers are compared too. It runs without gradients. Shown are an ensemble
and a model in ONNX Runtime; a function that asks a server or reads a table (by ``batch["row"]``,
where the rows have that column) is written alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress import DistillationArguments, DistillationTrainer

Batch = Mapping[str, Tensor]


def ensemble(models: Sequence[nn.Module]) -> Callable[[Batch], Tensor]:
    """One teacher of several: the logarithm of their mean probabilities.

    ``teacher=[first, second]`` weighs teachers, too, each by a loss of its own.
    """
    for model in models:
        model.eval()

    def teacher(batch: Batch) -> Tensor:
        chances = [model(**batch).logits.softmax(-1) for model in models]
        return torch.stack(chances).mean(0).log()

    return teacher


def onnx_teacher(session: Any) -> Callable[[Batch], Any]:
    """A teacher in an ``onnxruntime.InferenceSession``."""
    names = [item.name for item in session.get_inputs()]

    def teacher(batch: Batch) -> Any:
        return session.run(None, {name: batch[name].cpu().numpy() for name in names})[0]

    return teacher


def train(
    student: nn.Module, teacher: Callable[[Batch], Any], rows: Any, **arguments: Any
) -> DistillationTrainer:
    """Train a classifier on what a function says of its rows."""
    trainer = DistillationTrainer(
        model=student,
        args=DistillationArguments(temperature=2.0, alpha=1.0, **arguments),
        teacher=teacher,
        train_dataset=rows,
    )
    trainer.train()
    return trainer
