"""Tiny models and data that the pruning tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification


def lively_bert(seed: int = 0) -> Any:
    """A tiny BERT whose weights are large enough for its layers to matter."""
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=60,
        initializer_range=0.25,
    )
    model: Any = BertForSequenceClassification(config)
    model.eval()
    return model


def sentences(
    batches: int = 3, rows: int = 6, length: int = 10, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Batches of random tokens; the second half of each batch's rows is padded."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(batches):
        mask = torch.ones(rows, length, dtype=torch.long)
        mask[rows // 2 :, length // 2 :] = 0
        made.append(
            {
                "input_ids": torch.randint(0, 60, (rows, length), generator=generator),
                "attention_mask": mask,
                "labels": torch.randint(0, 2, (rows,), generator=generator),
            }
        )
    return made


def repadded(batches: list[dict[str, Tensor]], token: int) -> list[dict[str, Tensor]]:
    """The same sentences with another token as padding."""
    return [
        {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, token)}
        for batch in batches
    ]
