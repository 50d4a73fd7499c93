"""The ``finetune`` step: `transformers.Trainer` on the recipe's training rows."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from hfcompress.recipe.context import Context
from hfcompress.recipe.finetune_config import FinetuneConfig
from hfcompress.recipe.progress import Progress


class ProgressCallback(TrainerCallback):
    """Passes a Trainer's steps on to a `Progress`."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell how far training is."""
        self.progress.work(state.global_step, state.max_steps)


def finetune(
    model: PreTrainedModel, config: FinetuneConfig, context: Context
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train a model on its task.

    Checkpoints are kept once an epoch in the context's working folder; a run that was killed
    goes on from the last one.

    Returns:
        The trained model (the same object) and what was done: updates and final loss.

    Raises:
        DataError: no training rows.
    """
    rows = context.training_rows("finetune")
    context.progress.stage(f"fine-tuning on {len(rows):,} rows")
    with ExitStack() as stack:
        folder = context.workdir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        set_seed(context.seed)
        trainer = Trainer(
            model=model,
            args=_arguments(config, context, folder, rows.lengths is not None),
            train_dataset=rows.rows,
            data_collator=rows.collate,
            callbacks=[ProgressCallback(context.progress)],
        )
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ == "PrinterCallback":  # prints every log line to stdout
                trainer.remove_callback(callback)
        last = _last_checkpoint(folder)
        result = trainer.train(resume_from_checkpoint=last)
    done = {"updates": result.global_step, "training_loss": round(result.training_loss, 4)}
    model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    return model, done


def _last_checkpoint(folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    found: str | None = get_last_checkpoint(str(folder))  # type: ignore[no-untyped-call]
    return found


def _arguments(
    config: FinetuneConfig, context: Context, folder: Path, has_lengths: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        label_smoothing_factor=config.label_smoothing,
        bf16=config.bf16,
        use_cpu=not torch.accelerator.is_available(),
        # Rows of like length together: no time spent on padding.
        train_sampling_strategy="group_by_length" if has_lengths else "random",
        save_strategy="epoch" if context.workdir is not None else "no",
        save_total_limit=1,
        seed=context.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
