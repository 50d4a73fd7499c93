"""``make_static_student``: a vector for each token, made from what the teacher says of it alone."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfcompress.config import Config
from hfcompress.errors import ConfigError, ModelError
from hfcompress.measure.macs import evaluation_mode
from hfcompress.models.card import origin_of
from hfcompress.models.modeling_embedding import EmbeddingModel
from hfcompress.models.static_embedding import StaticEmbedder

_ROWS = 256


class StaticStudentConfig(Config):
    """A student without a transformer; the options of `make_static_student`.

    Raises:
        ConfigError: an unknown field or a value out of range.
    """

    dimensions: int | None = Field(
        256,
        ge=1,
        description="principal components that are kept of the teacher's vectors; null keeps all",
    )
    smoothing: float | None = Field(
        1e-5, gt=0,
        description="tokens weigh a / (a + p), with this a and the probability p that Zipf's law "
        "gives the token's place in the vocabulary; null weighs all alike",
    )  # fmt: skip


def make_static_student(
    teacher: EmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    config: StaticStudentConfig | None = None,
) -> StaticEmbedder:
    """Return a table with a vector for each token, as model2vec makes it (Tulkens and van Dongen
    2024, github.com/MinishLab/model2vec): the teacher's vector of the token alone, on its principal
    components, weighted so that frequent tokens count less (Arora et al. 2017, with Zipf's law for
    frequencies). Nothing is trained::

        student = make_static_student(teacher, tokenizer)
        student.save_pretrained("static", tokenizer)
        hfcompress.load("static").encode(texts)

    Args:
        teacher: an embedding model; not changed.
        tokenizer: its own, whose vocabulary is in the order of frequency.
        config: sizes and weights.

    Raises:
        ConfigError: more dimensions than the teacher's vectors have.
        ModelError: a teacher that gives no vectors.
    """
    config = config or StaticStudentConfig()
    if not isinstance(teacher, EmbeddingModel):
        raise ModelError(
            f"{type(teacher).__name__} gives no vectors; give an embedding model (task: "
            f"sentence-similarity)"
        )
    size = teacher.vector_size
    if config.dimensions is not None and config.dimensions > size:
        raise ConfigError(
            f"dimensions is {config.dimensions} and the teacher's vectors have {size} values; "
            f"write at most {size}"
        )
    table = _components(_token_vectors(teacher, tokenizer), config.dimensions)
    if config.smoothing is not None:
        table = table * zipf_weights(len(table), config.smoothing)[:, None]
    return StaticEmbedder(table, origin=origin_of(teacher))


@torch.inference_mode()
def _token_vectors(teacher: EmbeddingModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the teacher's vector of each token between the usual special tokens."""
    first, last = _around(tokenizer)
    parts = []
    with evaluation_mode(teacher):
        for start in range(0, len(tokenizer), _ROWS):
            tokens = range(start, min(start + _ROWS, len(tokenizer)))
            ids = torch.tensor([[*first, token, *last] for token in tokens], device=teacher.device)
            parts.append(teacher(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.cpu())
    return torch.cat(parts)


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens before and behind a text."""
    one = tokenizer.convert_ids_to_tokens(len(tokenizer) // 2)
    inner = tokenizer(str(one), add_special_tokens=False)["input_ids"]
    whole = tokenizer(str(one))["input_ids"]
    places = [n for n in range(len(whole)) if whole[n : n + len(inner)] == inner]
    if not inner or not places:
        raise ModelError(
            f"the tokenizer does not keep the token {one!r} together, so that its special tokens "
            f"cannot be told from it; give the teacher's own tokenizer"
        )
    place = places[0]
    return whole[:place], whole[place + len(inner) :]


def _components(vectors: Tensor, count: int | None) -> Tensor:
    """Return vectors on their principal components, the largest first."""
    centred = (vectors - vectors.mean(0)).double()
    basis: Tensor = torch.linalg.eigh(centred.T @ centred)[1]
    kept = basis.flip(1)[:, :count]
    # The sign of an eigenvector is arbitrary: its largest value is made positive.
    kept = kept * kept.gather(0, kept.abs().argmax(0, keepdim=True)).sign()
    return (centred @ kept).float()


def zipf_weights(tokens: int, smoothing: float) -> Tensor:
    """Return a / (a + p) of each token, with p of Zipf's law: inverse to the token's place.

    Args:
        tokens: size of the vocabulary, the most frequent first.
        smoothing: a.
    """
    inverse = torch.arange(2, tokens + 2, dtype=torch.float64).reciprocal()
    weights = (1 + inverse / inverse.sum() / smoothing).reciprocal()
    return weights.float()
