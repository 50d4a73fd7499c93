from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

MakeTrainer = Callable[..., Trainer]


def tiny_bert(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16,
        )
    )  # fmt: skip


def tiny_rows(count: int = 64) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    rows = [torch.randint(1, 50, (8,), generator=generator) for _ in range(count)]
    return [{"input_ids": row, "labels": (row[0] > 25).long()} for row in rows]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """A Trainer of a tiny BERT; keywords go to its training arguments."""

    def make(
        *callbacks: TrainerCallback,
        trainer_class: type[Trainer] = Trainer,
        arguments_class: type[TrainingArguments] = TrainingArguments,
        model: torch.nn.Module | None = None,
        folder: str = "out",
        trainer_options: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> Trainer:
        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path / folder), "max_steps": 20, "use_cpu": True,
            "per_device_train_batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.1,
            "save_strategy": "no", "report_to": [], "disable_tqdm": True, "seed": 3,
        }  # fmt: skip
        return trainer_class(
            model=tiny_bert() if model is None else model,
            args=arguments_class(**{**defaults, **arguments}),
            train_dataset=tiny_rows(),
            callbacks=list(callbacks),
            **(trainer_options or {}),
        )

    return make
