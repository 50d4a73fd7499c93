"""One-layer classifiers of every family of texts, and calibration batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from hfcompress.models.architectures import FAMILIES

IMAGES = {"vit", "deit", "beit", "swin"}
TEXTS = sorted(set(FAMILIES) - IMAGES)
_SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 40, "bos_token_id": 1,
             "eos_token_id": 1},
    "modernbert": {f"{kind}_token_id": 0 for kind in ("eos", "bos", "cls", "sep")},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"],
                   "position_buckets": 16, "type_vocab_size": 0},
}  # fmt: skip


def small(model_type: str = "bert", seed: int = 0, labels: int = 3) -> Any:
    """A classifier with random lively weights, biases too."""
    torch.manual_seed(seed)
    sizes = dict(_SIZES)
    if model_type in ("distilbert", "gpt2"):
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            sizes.pop(name)
    settings = AutoConfig.for_model(
        model_type,
        **{**sizes, **_OWN.get(model_type, {}), "initializer_range": 0.25, "num_labels": labels},
    )
    build: Any = AutoModelForSequenceClassification.from_config
    model = build(settings)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model.train(False)


def batches(rows: int = 6, count: int = 3, vocabulary: int = 60) -> list[dict[str, Tensor]]:
    """Random ids, some padding, labels."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        ids = torch.randint(1, vocabulary, (rows, 9 + index), generator=generator)
        mask = torch.ones_like(ids)
        mask[rows // 2 :, 6:] = 0
        labels = torch.randint(0, 3, (rows,), generator=generator)
        made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
    return made


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """A torch model's logits."""
    with torch.no_grad():
        found: Tensor = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    return found
