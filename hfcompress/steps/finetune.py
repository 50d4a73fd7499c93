"""The ``finetune`` step: `transformers.Trainer` on the recipe's training rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hfcompress.recipes.step_configs import FinetuneConfig
from hfcompress.steps.context import Context, ModelState, StepReport
from hfcompress.steps.training import set_up, train_with, trainer_arguments, training_view


def finetune_step(
    state: ModelState, config: FinetuneConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Train the model on its task, in place.

    Raises:
        DataError: no training rows.
    """
    report = finetune(state.network, config, context)
    return state.after(config, report), report


def finetune(
    model: PreTrainedModel,
    config: FinetuneConfig,
    context: Context,
    callbacks: Sequence[TrainerCallback] = (),
) -> StepReport:
    """Train a model in place: updates, mean loss and seconds.

    Checkpoints are kept once an epoch in the context's working folder; a run that was killed
    resumes from the last one.

    Raises:
        DataError: no training rows.
    """
    rows = training_view(context.training_rows("finetune"), config)
    context.progress.stage(f"fine-tuning on {len(rows):,} rows")

    def build(**common: Any) -> Trainer:
        return Trainer(args=trainer_arguments(TrainingArguments, config, context, rows), **common)

    with set_up(model, config, context.device):
        done, _ = train_with(build, model, context, rows, callbacks)
    return StepReport(details=done)
