"""Tiny students, teachers and rows that the distillation tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.trainer import DistillationTrainer

Row = dict[str, Any]
ALL: dict[str, Any] = {
    "logits_weight": 0.5, "hidden_weight": 0.5, "attention_weight": 1.0, "value_weight": 2.0,
}  # fmt: skip
"""Every term on."""
STILL: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""No dropout."""


def bert(
    seed: int = 0, layers: int = 2, width: int = 16, kind: Any = BertForSequenceClassification,
    **config: Any,
) -> Any:  # fmt: skip
    """A tiny BERT whose logits are far enough apart for a temperature to matter."""
    torch.manual_seed(seed)
    model = kind(
        BertConfig(
            vocab_size=50, hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=layers, num_attention_heads=2, max_position_embeddings=16, **config,
        )
    )  # fmt: skip
    head = model.qa_outputs if kind is BertForQuestionAnswering else model.classifier
    head.weight.data.mul_(20)
    return model.eval()


def rows(count: int = 32, length: int = 8) -> list[Row]:
    """Rows of 4 to 8 tokens, padded to 8, whose label the first token decides."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for index in range(count):
        ids = torch.randint(1, 50, (length,), generator=generator)
        kept = length - index % 5
        ids[kept:] = 0
        mask = (torch.arange(length) < kept).long()
        made.append({"input_ids": ids, "attention_mask": mask, "labels": (ids[0] > 25).long()})
    return made


def token_rows(count: int = 32) -> list[Row]:
    """Rows with a label for each token; padding and every third token have none."""
    made = []
    for row in rows(count):
        labels = (row["input_ids"] % 3).masked_fill(row["attention_mask"] == 0, -100)
        labels[1::3] = -100
        made.append({**row, "labels": labels})
    return made


def span_rows(count: int = 32) -> list[Row]:
    """Questions whose answers start and end somewhere."""
    answers = {"start_positions": torch.tensor(1), "end_positions": torch.tensor(2)}
    made = []
    for row in rows(count):
        del row["labels"]
        made.append({**row, **answers})
    return made


def span_bert(seed: int = 0, **config: Any) -> Any:
    """A tiny BERT that says where an answer starts and ends."""
    return bert(seed, kind=BertForQuestionAnswering, **config)


def token_bert(seed: int = 0, **config: Any) -> Any:
    """A tiny BERT with three classes for each token."""
    return bert(seed, kind=BertForTokenClassification, num_labels=3, **config)


class ConvStudent(nn.Module):
    """A student of another kind: no labels, no config, logits as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 8)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.convolution(self.embedding(input_ids).transpose(1, 2)).relu()
        states = states.masked_fill(attention_mask[:, None] == 0, 0.0)
        logits: Tensor = self.classifier(states.amax(-1))
        return logits


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
        model=bert(0) if student is None else student,
        args=DistillationArguments(**arguments(folder, **given)),
        teacher=bert(1) if teacher is None else teacher,
        train_dataset=rows() if data is None else data,
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
