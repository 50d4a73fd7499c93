"""The ``shrink`` and ``vocabulary`` steps: matrices and the embedding get smaller."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.data.columns import column_texts
from hfcompress.data.load import load_texts
from hfcompress.errors import ModelError
from hfcompress.recipes.step_configs import ShrinkStepConfig
from hfcompress.shrinking.shrink import check_shrinkable, shrink
from hfcompress.shrinking.vocabulary.shrink import apply_cut, required_tokens
from hfcompress.shrinking.vocabulary.tokenizer import VocabularyConfig, cut_tokenizer
from hfcompress.steps.context import Context, ModelState, StepReport
from hfcompress.steps.prune import recover
from hfcompress.steps.training import check_training


def shrink_step(
    state: ModelState, config: ShrinkStepConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Shrink the model in place.

    Raises:
        TargetError: an unknown family.
        ConfigError: a budget that cannot be met.
        DataError: no training rows, where the config calibrates or recovers.
    """
    rows = None
    if config.needs_calibration or config.budget in ("latency", "speedup"):
        rows = context.calibration(config.calibration_rows, config.seed, config.augmented_rows)
    training = config.recover

    def retrain(network: nn.Module) -> None:
        if training is not None:
            shrunk = replace(state, model=cast(PreTrainedModel, network), is_shrunk=True)
            recover(shrunk, training, replace(context, workdir=None))

    stages: set[str] = set()

    def show(doing: str, done: int, whole: int) -> None:
        if doing not in stages:
            stages.add(doing)
            context.progress.stage(f"shrinking: {doing}")
        context.progress.work(done, whole)

    model = state.network
    found = shrink(model, config.choice, rows, recover=retrain if training else None, progress=show)
    report = StepReport.from_dict(found.to_dict())
    return state.after(config, report), report


def check_shrink(model: PreTrainedModel, config: ShrinkStepConfig) -> None:
    """Refuse a model without anything known that could be removed, before anything runs.

    Raises:
        TargetError: such a family.
    """
    check_shrinkable(model)
    if config.recover is not None:
        check_training(model, config.recover)


def vocabulary_step(
    state: ModelState, config: VocabularyConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Remove tokens from the model in place, and from its tokenizer.

    Later steps and the measurement read rows that are encoded anew.

    Raises:
        DataError: no training rows.
        SourceError, DataError: `load_texts` of the further texts.
        CalibrationError, ModelError: as `shrink_vocabulary`.
    """
    context.training_rows("vocabulary")
    assert context.examples.train is not None
    context.progress.stage("vocabulary: looking for the tokens that the training rows use")
    texts = column_texts(context.examples.train, context.examples.columns)
    if config.unlabelled is not None:
        texts = [*texts, *context.unmeasured(load_texts(config.unlabelled))]
    model = state.network
    tokenizer = cast(PreTrainedTokenizerBase, state.processor)  # only images have another
    alone = config.replace(unlabelled=None)  # its texts are among these
    cut = cut_tokenizer(tokenizer, texts, alone, required_tokens(model))
    report = StepReport.from_dict(apply_cut(model, cut).to_dict())
    return state.with_vocabulary(cut).after(config, report), report


def check_vocabulary(model: PreTrainedModel, config: VocabularyConfig) -> None:
    """Refuse a model without an embedding of tokens, before anything runs.

    Raises:
        ModelError: such a model.
    """
    if getattr(model.config, "vocab_size", None) is None:
        raise ModelError(f"{type(model).__name__} reads no tokens; leave the vocabulary step out")
