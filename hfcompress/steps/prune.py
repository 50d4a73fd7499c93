"""The steps that train a compressed model, each a thin layer over `hfcompress.pruning`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from hfcompress.data.encode import Encoded, encode_texts
from hfcompress.data.load import load_texts
from hfcompress.distillation.teacher_loss import TeacherLoss
from hfcompress.distillation.text_augmentation import mixed_texts
from hfcompress.errors import ConfigError
from hfcompress.inference import predict
from hfcompress.measure.evaluation import compute_metric
from hfcompress.measure.size import calculate_sparsity
from hfcompress.models.architectures import select_modules
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.iterative import find_ticket, progressive
from hfcompress.pruning.prune import PruneReport, prune
from hfcompress.pruning.trainer import PruningArguments, PruningTrainer
from hfcompress.pruning.training_config import PruningTrainingConfig
from hfcompress.pruning.training_masks import Prune
from hfcompress.recipes.step_configs import (
    DistillConfig,
    FinetuneConfig,
    GradualConfig,
    LotteryStepConfig,
    ProgressiveStepConfig,
    RecoverConfig,
)
from hfcompress.steps.context import Context, Done
from hfcompress.steps.finetune import (
    dropout,
    fast_attention,
    finetune,
    frozen_embeddings,
    memory_format,
    trackers,
    train_with,
    trainer_arguments,
    training_view,
)

Model = PreTrainedModel


def recover(model: Model, config: RecoverConfig, context: Context) -> tuple[Model, Done]:
    """Train a pruned model, whose zeros stay, or a shrunk one, all of which trains.

    Raises:
        TargetError: no step has shrunk the model, and it has no zeros to keep.
        DataError: no training rows.
    """
    keep = PruningTrainingConfig(
        method="keep_zeros", targets=context.pruned, may_be_dense=context.shrunk
    )
    return model, _train(model, config, context, keep, None)


def gradual(model: Model, config: GradualConfig, context: Context) -> tuple[Model, Done]:
    """Prune while training.

    Raises:
        TargetError: nothing to prune.
        ConfigError: a schedule that ends after training does.
        DataError: no training rows.
    """
    pruner: Prune | None = None
    if config.oneshot is not None:
        pruner = _pruner(config.oneshot, context)
    done = _train(model, config, context, config.pruning, pruner)
    wanted = config.pruning.sparsity
    return model, done | touched(model, config.pruning.targets, config.pruning.exclude, wanted)


def lottery(model: Model, config: LotteryStepConfig, context: Context) -> tuple[Model, Done]:
    """Iterative magnitude pruning with rewinding.

    Raises:
        ConfigError: the training is shorter than ``rewind_step``.
    """

    def train(network: nn.Module, callbacks: Sequence[TrainerCallback]) -> None:
        alone = replace(context, workdir=None)  # each round is a training of its own
        finetune(network, config.training, alone, callbacks)  # type: ignore[arg-type]

    rounds = find_ticket(model, config, train)
    model.eval()  # type: ignore[no-untyped-call]
    done: Done = {"rounds": [round(part.sparsity, 4) for part in rounds]}
    return model, done | touched(model, config.targets, config.exclude, config.sparsity)


def progressive_step(
    model: Model, config: ProgressiveStepConfig, context: Context
) -> tuple[Model, Done]:
    """Prune and recover in rounds, as far as ``max_loss`` allows."""
    rows = context.training_rows("progressive")
    order = np.random.default_rng(context.seed).permutation(len(rows))
    cut = max(1, round(config.held_out * len(rows)))
    judged, trained = rows.select(np.sort(order[:cut])), rows.select(np.sort(order[cut:]))
    inner = replace(context, train=trained, workdir=None)

    def evaluate(network: nn.Module) -> float:
        logits = predict(network, judged, config.recover.batch_size)
        return compute_metric("accuracy", logits, judged.labels)

    rounds = progressive(
        model,
        config,
        prune=_pruner(config.prune, inner),
        recover=lambda network: _recover_zeros(network, config, inner),
        evaluate=evaluate,
    )
    model.eval()  # type: ignore[no-untyped-call]
    done: Done = {"rounds": [vars(part) for part in rounds]}
    accepted = [part.sparsity for part in rounds if part.accepted]
    wanted = config.sparsity if accepted else 0.0
    return model, done | touched(model, config.prune.targets, config.prune.exclude, wanted)


def _recover_zeros(network: nn.Module, config: ProgressiveStepConfig, context: Context) -> None:
    recover(network, config.recover, context)  # type: ignore[arg-type]


def _pruner(config: Any, context: Context) -> Prune:
    """A one-shot method as ``prune(model, sparsity)``, on the context's calibration rows."""

    def prune_to(network: nn.Module, sparsity: float) -> None:
        prune_by(network, config.replace(sparsity=sparsity), context)

    return prune_to


def _train(
    model: Model,
    config: RecoverConfig,
    context: Context,
    pruning: PruningTrainingConfig,
    pruner: Prune | None,
) -> Done:
    """One training with masks, and the losses that the config adds."""
    rows = training_rows(config, context)
    context.progress.stage(f"training with masks on {len(rows):,} rows")
    with ExitStack() as stack:
        terms = None
        if config.distillation is not None:
            terms = stack.enter_context(
                TeacherLoss(model, context.dense_model(), config.distillation)
            )

        def build(**common: Any) -> PruningTrainer:
            arguments = trainer_arguments(
                PruningArguments,
                config,
                context,
                rows,
                task_loss_weight=config.task_loss_weight,
                num_train_epochs=1.0 if config.augmentation else config.epochs,
                **{f"pruning_{name}": value for name, value in pruning.to_dict().items()},
            )
            return PruningTrainer(args=arguments, loss_terms=terms, prune=pruner, **common)

        stack.enter_context(dropout(model, config.dropout))
        stack.enter_context(frozen_embeddings(model, config.freeze_embeddings))
        stack.enter_context(fast_attention(model))
        stack.enter_context(memory_format(model, config.channels_last))
        done, trainer = train_with(build, model, context, rows)
        assert isinstance(trainer, PruningTrainer)
    return {**done, "sparsity": trainer.pruning.sparsity}


def training_rows(config: RecoverConfig | DistillConfig, context: Context) -> Encoded:
    """The training rows; with augmentation as many texts as the epochs show rows, without labels.

    Raises:
        DataError: no training rows; rows that are not one text; no further texts where named.
    """
    rows = training_view(context.training_rows("training"), config)
    if config.augmentation is None:
        return rows
    texts, options = context.training_texts(), config.augmentation
    count = round(len(texts) * config.epochs)
    if options.unlabelled is not None:
        texts = [*texts, *context.unmeasured(load_texts(options.unlabelled))]
    corpus = mixed_texts(
        texts,
        count,
        context.seed,
        share=options.share,
        methods=options.methods,
        rate=options.rate,
        mask_token=context.processor.mask_token or "",
    )
    return encode_texts(corpus, context.processor, context.max_length)


def touched(
    model: nn.Module,
    targets: Sequence[str] | None,
    exclude: Sequence[str] | None,
    requested: float | None,
) -> Done:
    """What a step says of the layers that it pruned."""
    names = list(select_modules(model, targets, exclude))
    sparsity = calculate_sparsity(model, names)
    return {
        "requested": requested if requested is not None else sparsity.targets,
        "layers": [
            {"name": part.name, "weights": part.weights, "zeros": part.zeros, "requested": None}
            for part in sparsity.layers
        ],
    }


def check_training(model: nn.Module, config: Any) -> None:
    """Refuse trackers that are missing and patterns that match nothing, before anything runs."""
    for part in (config, *(getattr(config, name, None) for name in ("training", "recover"))):
        if isinstance(part, FinetuneConfig):
            trackers(part)
            if _is_text(model) and (part.image_augmentation or part.channels_last):
                raise ConfigError(
                    "image_augmentation and channels_last are for models that read images; "
                    "leave them out"
                )
    for part in (config, getattr(config, "pruning", None), getattr(config, "prune", None)):
        if part is not None and hasattr(part, "targets"):
            select_modules(model, part.targets, part.exclude)
    if (
        isinstance(config, (RecoverConfig, DistillConfig))
        and config.augmentation
        and not _is_text(model)
    ):
        raise ConfigError("augmentation makes text; leave it out for a model that reads images")


def _is_text(model: nn.Module) -> bool:
    return getattr(model, "main_input_name", "input_ids") == "input_ids"


def prune_step(
    model: PreTrainedModel, config: PruningConfig, context: Context
) -> tuple[PreTrainedModel, Done]:
    """Prune in place."""
    context.progress.stage(f"pruning: {config.method}, {config.wanted:.0%}")
    return model, prune_by(model, config, context).to_dict()


def prune_by(model: nn.Module, config: PruningConfig, context: Context) -> PruneReport:
    """Prune in place, with training rows drawn by the config's seed where the method calibrates."""
    if not config.needs_calibration:
        return prune(model, config)
    calibration = context.calibration(config.calibration_rows, config.seed, config.augmented_rows)
    return prune(model, config.replace(calibration_rows=None, augmented_rows=0), calibration)


def _check_targets(model: PreTrainedModel, config: PruningConfig) -> None:
    select_modules(model, config.targets, config.exclude)
