"""The steps that prune, and those that train a pruned model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from hfcompress.distillation.teacher_loss import TeacherLoss
from hfcompress.inference import predict
from hfcompress.measure.size import calculate_sparsity
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.iterative import find_ticket, progressive
from hfcompress.pruning.prune import PruneReport, prune
from hfcompress.pruning.targets import literal, prunable, select_targets
from hfcompress.pruning.trainer import PruningArguments, PruningTrainer
from hfcompress.pruning.training_config import PruningTrainingConfig
from hfcompress.pruning.training_masks import Prune
from hfcompress.recipes.step_configs import (
    GradualConfig,
    LotteryStepConfig,
    ProgressiveStepConfig,
    RecoverConfig,
)
from hfcompress.steps.context import Context, ModelState, StepReport
from hfcompress.steps.finetune import finetune
from hfcompress.steps.training import set_up, train_with, trainer_arguments, training_rows


def prune_step(
    state: ModelState, config: PruningConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Prune the model in place.

    Raises:
        ConfigError, TargetError, CalibrationError: as `prune`.
        DataError: no training rows, where the method calibrates.
    """
    context.progress.stage(f"pruning: {config.method}, {config.resolved_sparsity:.0%}")
    pruned = _prune(state.network, config, context)
    for note in pruned.notes:
        context.progress.note(f"prune: {note}")
    report = StepReport.from_dict(pruned.to_dict())
    return state.after(config, report), report


def recover_step(
    state: ModelState, config: RecoverConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Train the model in place, as `recover`."""
    report = recover(state, config, context)
    return state.after(config, report), report


def recover(state: ModelState, config: RecoverConfig, context: Context) -> StepReport:
    """Train a pruned model, whose zeros stay, or a shrunk one, all of which trains.

    Raises:
        TargetError: no step has shrunk the model, and it has no zeros to keep.
        DataError: no training rows.
    """
    left = prunable(state.network)  # a step between may have dropped layers
    pruned = tuple(name for name in state.pruned_layers if name in left)
    keep = PruningTrainingConfig(
        method="keep_zeros",
        targets=tuple(map(literal, pruned)) or None,
        may_be_dense=state.is_shrunk,
    )
    return _train(state.network, config, context, keep, None)


def gradual_step(
    state: ModelState, config: GradualConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Prune the model while it trains, in place.

    Raises:
        TargetError: nothing to prune.
        ConfigError: a schedule that ends after training does.
        DataError: no training rows.
    """
    pruner = None if config.oneshot is None else _pruner(config.oneshot, context)
    trained = _train(state.network, config, context, config.pruning, pruner)
    report = _with_layers(trained, state.network, config.pruning, config.pruning.sparsity)
    return state.after(config, report), report


def lottery_step(
    state: ModelState, config: LotteryStepConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Search a lottery ticket in place: iterative magnitude pruning with rewinding.

    Raises:
        ConfigError: the training is shorter than ``rewind_step``.
    """
    alone = replace(context, workdir=None)  # each round is a training of its own

    def train(network: nn.Module, callbacks: Sequence[TrainerCallback]) -> None:
        finetune(cast(PreTrainedModel, network), config.training, alone, callbacks)

    model = state.network
    rounds = find_ticket(model, config, train)
    model.train(False)
    found = StepReport(details={"rounds": [round(part.sparsity, 4) for part in rounds]})
    report = _with_layers(found, model, config, config.sparsity)
    return state.after(config, report), report


def progressive_step(
    state: ModelState, config: ProgressiveStepConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Prune and recover in rounds, in place, as far as ``max_loss`` allows."""
    rows = context.training_rows("progressive")
    order = np.random.default_rng(context.seed).permutation(len(rows))
    cut = config.held_out_rows(len(rows))
    judged, trained = rows.select(np.sort(order[:cut])), rows.select(np.sort(order[cut:]))
    inner = replace(context, train=trained, workdir=None)

    def retrain(network: nn.Module) -> None:
        recover(replace(state, model=cast(PreTrainedModel, network)), config.recover, inner)

    asked = state.task.references(judged, context.examples.labels)
    metric = state.task.metrics(context.examples.kind)[0]

    def evaluate(network: nn.Module) -> float:
        outputs = predict(network, judged, config.recover.batch_size)
        return state.task.metric(metric, outputs, asked)

    model, pruner = state.network, _pruner(config.prune, inner)
    rounds = progressive(model, config, prune=pruner, recover=retrain, evaluate=evaluate)
    model.train(False)
    found = StepReport(details={"rounds": [vars(part) for part in rounds]})
    accepted = any(part.accepted for part in rounds)
    requested = config.sparsity if accepted else 0.0
    report = _with_layers(found, model, config.prune, requested)
    return state.after(config, report), report


def _prune(model: nn.Module, config: PruningConfig, context: Context) -> PruneReport:
    """Prune in place, with calibration rows drawn by the config's seed if the method needs them."""
    if not config.needs_calibration:
        return prune(model, config)
    calibration = context.calibration(config.calibration_rows, config.seed, config.augmented_rows)
    return prune(model, config.replace(calibration_rows=None, augmented_rows=0), calibration)


def _pruner(config: PruningConfig, context: Context) -> Prune:
    """A one-shot method as ``prune(model, sparsity)``, on the context's calibration rows."""

    def prune_to(network: nn.Module, sparsity: float) -> None:
        _prune(network, config.replace(sparsity=sparsity), context)

    return prune_to


def _train(
    model: PreTrainedModel,
    config: RecoverConfig,
    context: Context,
    pruning: PruningTrainingConfig,
    pruner: Prune | None,
) -> StepReport:
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

        stack.enter_context(set_up(model, config, context.device))
        done, trainer = train_with(build, model, context, rows)
    return StepReport(details={**done, "sparsity": trainer.pruning.sparsity})


def _with_layers(
    report: StepReport,
    model: nn.Module,
    targets: PruningConfig | PruningTrainingConfig | LotteryStepConfig,
    requested: float | None,
) -> StepReport:
    """A report with the zeros of the layers that a step pruned."""
    names = list(select_targets(model, targets.targets, targets.exclude))
    sparsity = calculate_sparsity(model, names)
    layers = tuple(
        {"name": part.name, "weights": part.weights, "zeros": part.zeros, "requested": None}
        for part in sparsity.layers
    )
    asked = sparsity.targets if requested is None else requested
    return replace(report, requested_sparsity=asked, layers=layers)
