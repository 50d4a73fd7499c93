"""The ``vocabulary`` step: the tokens that the training rows do not use leave the model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from hfcompress.errors import ModelError
from hfcompress.shrinking.vocabulary.shrink import apply_cut, required_tokens
from hfcompress.shrinking.vocabulary.tokenizer import cut_tokenizer
from hfcompress.steps.context import Context
from hfcompress.vocabulary.config import VocabularyConfig


def vocabulary_step(
    model: PreTrainedModel, config: VocabularyConfig, context: Context
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Cut the vocabulary in place; later steps and the measurement read rows encoded anew.

    Raises:
        DataError: no training rows.
        CalibrationError, ModelError: as `shrink_vocabulary`.
    """
    context.training_rows("vocabulary")
    assert context.examples.train is not None
    context.progress.stage("vocabulary: looking for the tokens that the training rows use")
    texts = [text for column in context.examples.columns for text in context.examples.train[column]]
    cut = cut_tokenizer(context.processor, texts, config, required_tokens(model))
    report = apply_cut(model, cut)
    context.replace_tokenizer(cut)
    return model, report.plain()


def check_vocabulary(model: PreTrainedModel, config: VocabularyConfig) -> None:
    """Refuse a model without an embedding of tokens, before anything runs.

    Raises:
        ModelError: such a model.
    """
    if getattr(model.config, "vocab_size", None) is None:
        raise ModelError(f"{type(model).__name__} reads no tokens; leave the vocabulary step out")
