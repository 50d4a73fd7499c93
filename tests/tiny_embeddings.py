"""Tiny embedding models, and the folders that sentence-transformers would save of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertModel

from hfcompress.models.embedding_layout import DenseLayer, EmbeddingLayout, Pooling
from hfcompress.models.modeling_embedding import EmbeddingModel, embedding_class
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

TEXTS = ["good film", "the story is dull and cold", "a warm scene", "music was weak", "grim plot"]


def tiny_embedder(
    pooling: tuple[Pooling, ...] = ("mean",),
    normalize: bool = True,
    dense: int | None = None,
    **config: Any,
) -> EmbeddingModel:
    """A BERT of two layers whose output is a vector; ``dense`` is the size of a layer behind it."""
    options = {"initializer_range": 0.3, **config}
    model: EmbeddingModel = tiny_bert(kind=embedding_class(BertModel), **options)
    width = model.config.hidden_size * len(pooling)
    layers = () if dense is None else (DenseLayer(width, dense, activation="tanh"),)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.set_layout(EmbeddingLayout(pooling, layers, normalize, max_length=16))
    return model


def embedding_folder(folder: Path, **options: Any) -> Path:
    """Save a `tiny_embedder` with its tokenizer."""
    tiny_embedder(**options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
