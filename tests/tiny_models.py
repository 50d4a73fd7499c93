"""Tiny models and batches of text that the tests share: made from configs, the same each time.

A model is built anew at each call, which takes milliseconds, so no test sees another's changes.
Models come from the Auto classes: importing this module imports little modeling code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DeiTForImageClassification,
)

from hfcompress.checkpoint.save import record_shapes
from hfcompress.models.architectures import FAMILIES
from hfcompress.models.sublayers import sublayers
from hfcompress.models.surgery import keep_layers, keep_units

Batch = dict[str, Tensor]

# --- models of text ----------------------------------------------------------------------------


def tiny_bert(
    labels: int = 2, seed: int = 0, kind: Any = BertForSequenceClassification, **config: Any
) -> Any:
    """A BERT of two layers and 32 dimensions for `tiny_tokenizer`; ``config`` changes its sizes."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": 25, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 64, "num_labels": labels,
    }  # fmt: skip
    return kind(BertConfig(**{**sizes, **config})).eval()


def lively_bert(seed: int = 0) -> Any:
    """A BERT for `sentence_batches` whose weights are large enough for its layers to matter."""
    return tiny_bert(
        seed=seed, num_attention_heads=2, intermediate_size=48, vocab_size=60,
        max_position_embeddings=512, initializer_range=0.25,
    )  # fmt: skip


NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def sharp_bert(
    seed: int = 0, layers: int = 2, width: int = 16, kind: Any = BertForSequenceClassification,
    **config: Any,
) -> Any:  # fmt: skip
    """A BERT for `text_rows` whose logits are far enough apart for a temperature to matter."""
    sizes: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": layers, "num_attention_heads": 2, "max_position_embeddings": 16,
    }  # fmt: skip
    model = tiny_bert(seed=seed, kind=kind, **{**sizes, **config})
    head = model.qa_outputs if kind is BertForQuestionAnswering else model.classifier
    head.weight.data.mul_(20)
    return model


def span_bert(seed: int = 0, **config: Any) -> Any:
    """A `sharp_bert` that says where an answer starts and ends."""
    return sharp_bert(seed, kind=BertForQuestionAnswering, **config)


def token_bert(seed: int = 0, **config: Any) -> Any:
    """A `sharp_bert` with three classes for each token."""
    return sharp_bert(seed, kind=BertForTokenClassification, num_labels=3, **config)


class ConvStudent(nn.Module):
    """A text classifier that is no transformer: no labels, no config, logits as a tensor."""

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


_OWN_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 40, "bos_token_id": 1, "eos_token_id": 1},
    "modernbert": {f"{kind}_token_id": 0 for kind in ("eos", "bos", "cls", "sep")},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"],
                   "position_buckets": 16, "type_vocab_size": 0},
}  # fmt: skip
_SIZE_NAMES = {
    "distilbert": ("dim", "n_layers", "n_heads", "hidden_dim"),
    "gpt2": ("n_embd", "n_layer", "n_head", "intermediate_size"),
}
IMAGE_FAMILIES = {"beit", "deit", "swin", "vit"}
TEXT_FAMILIES = sorted(set(FAMILIES) - IMAGE_FAMILIES)
SHRINKABLE_TEXTS = ("bert", "distilbert", "electra", "modernbert", "roberta")
SHRINKABLE_IMAGES = ("deit", "vit")
SHRINKABLE = (*SHRINKABLE_TEXTS, *SHRINKABLE_IMAGES)


def text_model(
    family: str = "bert", seed: int = 0, labels: int = 3, layers: int = 1, neurons: int = 64
) -> Any:
    """A classifier of texts (60 token ids) with random lively weights and biases."""
    sizes: dict[str, Any] = {
        "vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0, "num_labels": labels,
    }  # fmt: skip
    return _lively(family, seed, layers, neurons, {**sizes, **_OWN_SIZES.get(family, {})})


def shrinkable_model(family: str, seed: int = 0) -> Any:
    """A classifier of texts or 16 x 16 images with three layers, four heads and 48 neurons."""
    if family in SHRINKABLE_IMAGES:
        sizes = {"image_size": 16, "patch_size": 8, "num_labels": 3}
        return _lively(family, seed, 3, 48, sizes)
    return text_model(family, seed, layers=3, neurons=48)


def uneven_model(family: str) -> Any:
    """A `shrinkable_model` with 4, 3 and 2 heads and 40, 32 and 24 neurons; its shapes recorded."""
    model = shrinkable_model(family)
    for place, sublayer in enumerate(sublayers(model)):
        layer = place // 2
        units = 4 - layer if sublayer.kind == "heads" else 40 - 8 * layer
        keep_units(model, sublayer, list(range(units)))
    record_shapes(model)
    return model


def uneven_model_without_a_layer(family: str) -> Any:
    """An `uneven_model` without its middle layer."""
    model = uneven_model(family)
    keep_layers(model, [0, 2])
    record_shapes(model)
    return model


def auto_class_of_shrinkable(family: str) -> str:
    """The name of the Auto class of `shrinkable_model`."""
    return f"AutoModelFor{'Image' if family in SHRINKABLE_IMAGES else 'Sequence'}Classification"


def _lively(family: str, seed: int, layers: int, neurons: int, sizes: dict[str, Any]) -> Any:
    torch.manual_seed(seed)
    usual = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names = _SIZE_NAMES.get(family, usual)
    sizes = {**dict(zip(names, (32, layers, 4, neurons), strict=True)), **sizes}
    config = AutoConfig.for_model(family, **sizes, initializer_range=0.25)
    model = build_classifier(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def build_classifier(config: Any) -> Any:
    """A classifier of texts or images, by the config's class."""
    if config.model_type == "deit":  # the Auto class cannot choose between two heads
        return DeiTForImageClassification(config)
    images = hasattr(config, "num_channels")
    auto: Any = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    return auto.from_config(config)


def logits(model: Any, batch: Batch) -> Tensor:
    """The logits of one batch, whose labels are left out."""
    with torch.no_grad():
        found: Tensor = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    return found


# --- batches and rows of text ------------------------------------------------------------------


def text_batches(rows: int = 6, count: int = 3, vocabulary: int = 60) -> list[Batch]:
    """Batches for `text_model`, each longer than the one before; half of the rows are padded."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        ids = torch.randint(1, vocabulary, (rows, 9 + index), generator=generator)
        mask = torch.ones_like(ids)
        mask[rows // 2 :, 6:] = 0
        labels = torch.randint(0, 3, (rows,), generator=generator)
        made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
    return made


def shrinkable_batches(family: str, batches: int = 2, rows: int = 4) -> list[Batch]:
    """Batches for `shrinkable_model`; half of the texts are padded with any tokens."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(batches):
        labels = torch.randint(0, 3, (rows,), generator=generator)
        if family in SHRINKABLE_IMAGES:
            pixels = torch.randn(rows, 3, 16, 16, generator=generator)
            made.append({"pixel_values": pixels, "labels": labels})
        else:
            mask = torch.ones(rows, 9, dtype=torch.long)
            mask[rows // 2 :, 5:] = 0
            ids = torch.randint(1, 60, (rows, 9), generator=generator)
            made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def sentence_batches(
    batches: int = 3, rows: int = 6, length: int = 10, seed: int = 0
) -> list[Batch]:
    """Batches for `lively_bert`; half of the rows are padded with any tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[rows // 2 :, length // 2 :] = 0
    return [
        {
            "input_ids": torch.randint(0, 60, (rows, length), generator=generator),
            "attention_mask": mask.clone(),
            "labels": torch.randint(0, 2, (rows,), generator=generator),
        }
        for _ in range(batches)
    ]


def repadded(batches: list[Batch], token: int) -> list[Batch]:
    """The same sentences with another token as padding."""
    return [
        {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, token)}
        for batch in batches
    ]


def text_rows(count: int = 32, length: int = 8) -> list[dict[str, Any]]:
    """Rows for `sharp_bert`: 4 to 8 tokens, padded to 8; the first one decides the label."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for index in range(count):
        ids = torch.randint(1, 50, (length,), generator=generator)
        kept = length - index % 5
        ids[kept:] = 0
        mask = (torch.arange(length) < kept).long()
        made.append({"input_ids": ids, "attention_mask": mask, "labels": (ids[0] > 25).long()})
    return made


def token_rows(count: int = 32) -> list[dict[str, Any]]:
    """`text_rows` with a label for each token; padding and every third token have none."""
    made = []
    for row in text_rows(count):
        labels = (row["input_ids"] % 3).masked_fill(row["attention_mask"] == 0, -100)
        labels[1::3] = -100
        made.append({**row, "labels": labels})
    return made


def span_rows(count: int = 32) -> list[dict[str, Any]]:
    """`text_rows` as questions whose answers start and end somewhere."""
    answers = {"start_positions": torch.tensor(1), "end_positions": torch.tensor(2)}
    made = []
    for row in text_rows(count):
        del row["labels"]
        made.append({**row, **answers})
    return made
