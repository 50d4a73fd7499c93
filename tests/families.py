"""A tiny model of every family that can be shrunk, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DeiTForImageClassification,
    ViTForImageClassification,
)

TEXT = ("bert", "distilbert", "electra", "modernbert", "roberta")
IMAGES = ("deit", "vit")
SHRINKABLE = (*TEXT, *IMAGES)
_SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "initializer_range": 0.25, "num_labels": 3,
}  # fmt: skip


def tiny(model_type: str, seed: int = 0) -> Any:
    """A classifier of three layers, four heads and 48 neurons, with random lively weights."""
    torch.manual_seed(seed)
    sizes = dict(_SIZES)
    if model_type in IMAGES:
        sizes |= {"image_size": 16, "patch_size": 8}
        image_class: Any = {"deit": DeiTForImageClassification, "vit": ViTForImageClassification}
        model: Any = image_class[model_type](AutoConfig.for_model(model_type, **sizes))
    else:
        sizes |= {"vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0}
        if model_type == "modernbert":
            sizes |= {f"{kind}_token_id": 0 for kind in ("eos", "bos", "cls", "sep")}
        if model_type == "distilbert":
            sizes |= {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
            for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
                sizes.pop(name)
        build: Any = AutoModelForSequenceClassification.from_config
        model = build(AutoConfig.for_model(model_type, **sizes))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def tiny_batches(model_type: str, batches: int = 2, rows: int = 4) -> list[dict[str, Tensor]]:
    """Random labelled batches; texts have padding."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(batches):
        labels = torch.randint(0, 3, (rows,), generator=generator)
        if model_type in IMAGES:
            pixels = torch.randn(rows, 3, 16, 16, generator=generator)
            made.append({"pixel_values": pixels, "labels": labels})
        else:
            mask = torch.ones(rows, 9, dtype=torch.long)
            mask[rows // 2 :, 5:] = 0
            ids = torch.randint(1, 60, (rows, 9), generator=generator)
            made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Logits of one batch."""
    with torch.no_grad():
        found: Tensor = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    return found
