"""``make_text_student``: a CNN or LSTM with a transformer's vocabulary."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.config import Config
from hfcompress.errors import ConfigError, ModelError
from hfcompress.models.configuration_text import Encoder, TextConfig
from hfcompress.models.modeling_text import TextForSequenceClassification


class TextStudentConfig(Config):
    """A student without attention; the options of `make_text_student`.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    encoder: Encoder = Field(
        "cnn", description="cnn (1408.5882) or bidirectional lstm (1903.12136)"
    )
    embedding_size: int | None = Field(
        None,
        ge=1,
        description="width of the embedding table; by default the teacher's. Below it, the table "
        "is projected to its principal components",
    )
    width: int = Field(
        128, ge=1, description="channels of each convolution, or size of the LSTM each way"
    )
    kernels: tuple[int, ...] = Field(
        (1, 2, 3, 4), strict=False, min_length=1,
        description="widths of the convolutions in tokens",
    )  # fmt: skip
    dense_size: int = Field(128, ge=1, description="width of the layer before the classifier")
    dropout: float = Field(0.1, ge=0, lt=1, description="before and after the dense layer")
    seed: int = Field(0, ge=0, description="seed of the initial weights")


def make_text_student(
    teacher: PreTrainedModel, config: TextStudentConfig | None = None
) -> TextForSequenceClassification:
    """Return a small text classifier with the teacher's labels, vocabulary and embedding table.

    Args:
        teacher: a sequence classifier that reads token ids; it does not change.
        config: the student's sizes.

    Returns:
        A model in evaluation mode, on the teacher's device.

    Raises:
        ModelError: a teacher without an embedding table.
        ConfigError: an ``embedding_size`` above the teacher's.
    """
    config = config or TextStudentConfig()
    table = _table(teacher)
    size = config.embedding_size or table.embedding_dim
    if size > table.embedding_dim:
        raise ConfigError(
            f"embedding_size {size} exceeds the teacher's {table.embedding_dim}; lower it or leave "
            f"it out"
        )
    own = cast(_LabelConfig, teacher.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        student = TextForSequenceClassification(
            TextConfig(
                vocab_size=table.num_embeddings,
                embedding_size=size,
                pad_token_id=own.pad_token_id or 0,
                id2label=own.id2label,
                label2id=own.label2id,
                problem_type=own.problem_type,
                **config.model_dump(exclude={"seed", "embedding_size"}),
            )
        )
    with torch.no_grad():
        student.embeddings.weight.copy_(_narrowed(table.weight, size))
    module: nn.Module = student
    module.to(teacher.device).eval()
    return student


class _LabelConfig(Protocol):
    """The fields of a classifier's config that the student copies."""

    pad_token_id: int | None
    id2label: dict[int, str]
    label2id: dict[str, int]
    problem_type: str | None


def _table(teacher: PreTrainedModel) -> nn.Embedding:
    table = teacher.get_input_embeddings() if teacher.main_input_name == "input_ids" else None
    if not isinstance(table, nn.Embedding):
        raise ModelError(
            f"{type(teacher).__name__} does not read token ids, so a text student cannot share its "
            f"vocabulary; use a student of another kind"
        )
    return table


def _narrowed(table: Tensor, size: int) -> Tensor:
    """Project a table (tokens, width) to its first principal components: (tokens, size)."""
    if size == table.shape[1]:
        return table
    centred = (table - table.mean(0)).double()
    # Decompose the covariance, because it is small and the table may have many thousand rows.
    _, directions = torch.linalg.eigh(centred.T @ centred)
    narrow: Tensor = (centred @ directions[:, -size:].flip(1)).to(table.dtype)
    return narrow
