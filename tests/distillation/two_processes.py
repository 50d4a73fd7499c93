"""Run by test_trainer_setups once for each rank: writes what each process holds."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hfcompress.distillation.trainer import DistillationTrainer
from tests.distillation.training import ALL_TERMS, distill, logged
from tests.tiny_models import NO_DROPOUT, token_bert, token_rows


def run(folder: Path, batch_size: int) -> dict[str, Tensor]:
    """Two updates; the weights, projections and logged losses afterwards."""
    given: dict[str, Any] = {
        **ALL_TERMS,
        "hidden_distance": "mse",
        "optim": "sgd",
        "max_grad_norm": 0.0,
    }
    trainer: DistillationTrainer = distill(
        folder, token_bert(0, **NO_DROPOUT), token_bert(1, width=24), token_rows(), max_steps=2,
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=2,
        train_sampling_strategy="sequential", learning_rate=0.1, **given,
    )  # fmt: skip
    student: Any = trainer.model
    held = {name: value.contiguous() for name, value in student.state_dict().items()}
    for name, value in trainer.teaching.layers.state_dict().items():
        held[f"projection.{name}"] = value.contiguous()
    for name in ("loss", "hard_loss", "soft_loss", "hidden_loss"):
        held[f"log.{name}"] = torch.tensor(logged(trainer, name))
    return held


if __name__ == "__main__":
    target = Path(sys.argv[1])
    held = run(target / "out", batch_size=2)
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size())
    save_file(held, target / f"process{rank}of{world}")
