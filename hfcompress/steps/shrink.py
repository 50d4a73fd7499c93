"""The ``shrink`` step: a thin layer over `hfcompress.pruning.structured`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hfcompress.errors import ModelError
from hfcompress.recipes.step_configs import ShrinkStepConfig
from hfcompress.shrinking.shrink import check_shrinkable, shrink
from hfcompress.shrinking.vocabulary.shrink import apply_cut, required_tokens
from hfcompress.shrinking.vocabulary.tokenizer import VocabularyConfig, cut_tokenizer
from hfcompress.steps.context import Context
from hfcompress.steps.prune import check_training, recover


def shrink_step(
    model: PreTrainedModel, config: ShrinkStepConfig, context: Context
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Shrink in place.

    Raises:
        TargetError: a family that is not known.
        ConfigError: a budget that cannot be met.
        DataError: no training rows, where the config calibrates or recovers.
    """
    rows = None
    if config.needs_calibration or config.budget in ("latency", "speedup"):
        rows = context.calibration(config.calibration_rows, config.seed, config.augmented_rows)
    training = config.recover

    def retrain(network: nn.Module) -> None:
        if training is not None:
            inner = replace(context, workdir=None, shrunk=True)
            recover(network, training, inner)  # type: ignore[arg-type]

    stages: set[str] = set()

    def tell(doing: str, done: int, whole: int) -> None:
        if doing not in stages:
            stages.add(doing)
            context.progress.stage(f"shrinking: {doing}")
        context.progress.work(done, whole)

    report = shrink(model, config.choice, rows, recover=retrain if training else None, tell=tell)
    return model, report.to_dict()


def check_shrink(model: PreTrainedModel, config: ShrinkStepConfig) -> None:
    """Refuse a model in which nothing is known that could go, before anything runs.

    Raises:
        TargetError: such a family.
    """
    check_shrinkable(model)
    if config.recover is not None:
        check_training(model, config.recover)


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
    return model, report.to_dict()


def check_vocabulary(model: PreTrainedModel, config: VocabularyConfig) -> None:
    """Refuse a model without an embedding of tokens, before anything runs.

    Raises:
        ModelError: such a model.
    """
    if getattr(model.config, "vocab_size", None) is None:
        raise ModelError(f"{type(model).__name__} reads no tokens; leave the vocabulary step out")
