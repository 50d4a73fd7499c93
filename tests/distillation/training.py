"""Trainings of tiny students that the distillation tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.trainer import DistillationTrainer
from tests.tiny_models import sharp_bert, text_rows

Row = dict[str, Any]
ALL_TERMS: dict[str, Any] = {
    "logits_weight": 0.5, "hidden_weight": 0.5, "attention_weight": 1.0, "value_weight": 2.0,
}  # fmt: skip


def arguments(folder: Any, **given: Any) -> dict[str, Any]:
    """Quiet training arguments for a few updates on the CPU."""
    return {
        "output_dir": str(folder), "max_steps": 6, "use_cpu": True, "logging_steps": 1,
        "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no",
        "report_to": [], "disable_tqdm": True, "seed": 3, **given,
    }  # fmt: skip


def distill(
    folder: Any, student: Any = None, teacher: Any = None, data: Any = None,
    trainer: Any = DistillationTrainer, options: dict[str, Any] | None = None,
    resume: str | None = None, **given: Any,
) -> DistillationTrainer:  # fmt: skip
    """Train a tiny student; keywords go to its arguments."""
    made: DistillationTrainer = trainer(
        model=sharp_bert(0) if student is None else student,
        args=DistillationArguments(**arguments(folder, **given)),
        teacher=sharp_bert(1) if teacher is None else teacher,
        train_dataset=text_rows() if data is None else data,
        **(options or {}),
    )
    made.train(resume_from_checkpoint=resume)
    return made


def weights(trainer: Any) -> Tensor:
    """All of a student's weights as one vector."""
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def logged(trainer: Any, name: str = "loss") -> list[float]:
    """What was logged of one number."""
    return [row[name] for row in trainer.state.log_history if "loss" in row]
