"""Texts of `tiny_tokenizer`'s words, and a masked language model for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from transformers import BertForMaskedLM

from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import sentence, tiny_tokenizer


def plain_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts, the same for the same seed."""
    generator = random.Random(seed)
    return [{"text": sentence(generator, place % 2 == 0)} for place in range(count)]


def masked_bert(**config: Any) -> Any:
    """A tiny BERT with weights large enough for its layers to matter."""
    return tiny_bert(kind=BertForMaskedLM, **{"initializer_range": 0.3, **config})


def save_backbone(folder: Path, **config: Any) -> Path:
    """Save a `masked_bert` and its tokenizer; returns the folder."""
    masked_bert(**config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
