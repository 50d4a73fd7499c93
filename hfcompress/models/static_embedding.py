"""``StaticEmbedder``: one vector for each token and no transformer; a text has their mean."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from hfcompress.errors import ModelError
from hfcompress.models.card import Origin, SavedCard, write_card
from hfcompress.models.embedding_layout import EmbeddingLayout, read_json, write_layout
from hfcompress.models.modeling_embedding import EmbeddingOutput

FOLDER = "0_StaticEmbedding"
WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
_TABLE = "embedding.weight"


class StaticEmbedder(nn.Module):
    """Gives a text the mean of its tokens' vectors; sentence-transformers' StaticEmbedding.

    Args:
        table: a vector for each token id, [tokens, size].
        normalize: give vectors of length 1.
        origin: what it was made from, for its card.

    Attributes:
        layout: as of an embedding model's folder.
    """

    def __init__(self, table: Tensor, normalize: bool = True, origin: Origin | None = None) -> None:
        super().__init__()
        self.origin = origin or Origin()
        self.embedding = nn.Embedding(table.shape[0], table.shape[1], _weight=table.clone())
        self.layout = EmbeddingLayout(pooling=("mean",), normalize=normalize, static=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> EmbeddingOutput:
        """Return the vectors as ``logits``, [batch, size].

        Args:
            input_ids: without special tokens, [batch, tokens].
            attention_mask: 0 where padded; None where nothing is.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.embedding(input_ids)
        counted = mask.to(states.dtype)
        total = (states * counted[..., None]).sum(1)
        vectors = total / counted.sum(1, keepdim=True).clamp_min(1)
        return EmbeddingOutput(F.normalize(vectors, dim=-1) if self.layout.normalize else vectors)

    def save_pretrained(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> Path:
        """Write a folder that SentenceTransformer and `hfcompress.load` read.

        Args:
            folder: created if missing.
            tokenizer: whose ids the table has; a fast one.

        Raises:
            ModelError: a tokenizer that has no ``tokenizer.json``.
        """
        folder = Path(folder)
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        write_layout(self.layout, folder, self.embedding.embedding_dim)
        weights = {_TABLE: self.embedding.weight.detach().cpu().contiguous()}
        save_file(weights, folder / FOLDER / WEIGHTS, {"format": "pt"})
        text = json.dumps(plain_tokenizer(tokenizer), ensure_ascii=False)
        (folder / FOLDER / TOKENIZER).write_text(text, encoding="utf-8")
        write_card(folder, self._card((folder / FOLDER / WEIGHTS).stat().st_size))
        return folder

    def _card(self, size: int) -> SavedCard:
        tokens, width = self.embedding.weight.shape
        return SavedCard(
            title="Static embedding model", origin=self.origin, task="sentence-similarity",
            library="sentence-transformers", tags=["static-embeddings"],
            made=f"A table of {tokens:,} tokens with {width} values each; a text has the mean of "
            "its tokens' vectors. There is no transformer.",
            code="from sentence_transformers import SentenceTransformer\n\n"
            'model = SentenceTransformer("FOLDER")\nprint(model.encode(["a sentence"]))',
            bytes=size,
        )  # fmt: skip

    @classmethod
    def from_pretrained(cls, folder: str | Path, layout: EmbeddingLayout) -> StaticEmbedder:
        """Return the model of a folder.

        Args:
            folder: as `save_pretrained` or sentence-transformers wrote it.
            layout: read from it.

        Raises:
            ModelError: weights that cannot be read.
        """
        path = Path(folder) / FOLDER / WEIGHTS
        try:
            table = load_file(path)[_TABLE]
        except Exception:  # safetensors raises several kinds
            raise ModelError(
                f"{path} has no readable table {_TABLE!r}; save the model again with "
                f"sentence-transformers"
            ) from None
        return cls(table.float(), layout.normalize)


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """Return a ``tokenizer.json`` that adds no special tokens, cuts nothing and pads nothing.

    Raises:
        ModelError: a tokenizer that has none.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} has no tokenizer.json; load it with AutoTokenizer, which "
            f"gives a fast one where one exists"
        )
    data: dict[str, object] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {**data, "post_processor": None, "truncation": None, "padding": None}


def padding_of(folder: Path) -> tuple[int, str]:
    """Return the id and the token that pad the texts of a static model's folder; no vector counts
    there, so any will do."""
    vocabulary = read_json(folder / FOLDER / TOKENIZER).get("model", {}).get("vocab", {})
    name = "[PAD]" if "[PAD]" in vocabulary else ""
    return (int(vocabulary[name]) if name else 0), name or "[PAD]"
