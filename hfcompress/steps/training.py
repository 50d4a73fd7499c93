"""What all steps that train share: the Trainer, its arguments and rows, the model's set-up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hfcompress.data.encode import Encoded, encode_texts
from hfcompress.data.image_batches import ImageCollator
from hfcompress.data.images import augment_images
from hfcompress.data.load import load_texts
from hfcompress.data.masks import MaskCollator
from hfcompress.distillation.text_augmentation import mixed_texts
from hfcompress.errors import ConfigError
from hfcompress.measure.environment import slow_bf16
from hfcompress.pruning.targets import select_targets
from hfcompress.recipes.step_configs import DistillConfig, FinetuneConfig, RecoverConfig
from hfcompress.steps.checkpoints import kept_loss, last_checkpoint, save_whole
from hfcompress.steps.context import Context
from hfcompress.storage.temporary import temporary_folder
from hfcompress.training.outputs import infer_task
from hfcompress.training.tracking import check_tracker, logs_in
from hfcompress.utils import Device, Progress

Arguments = TypeVar("Arguments", bound=TrainingArguments)
TrainerType = TypeVar("TrainerType", bound=Trainer)


def train_with(
    build: Callable[..., TrainerType],
    model: PreTrainedModel,
    context: Context,
    rows: Encoded,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[dict[str, Any], TrainerType]:
    """Train with any Trainer, resuming where a killed run left off.

    Args:
        build: makes the Trainer from model, rows, collator and callbacks.
        model: trained in place; in eval mode at the end.
        context: seed, progress, and the folder of checkpoints.
        rows: what to train on.
        callbacks: further callbacks.

    Returns:
        What was done (updates, mean loss, seconds), and the Trainer.
    """
    logs: AbstractContextManager[None] = nullcontext()
    if context.logs is not None:
        logs = logs_in(*context.logs)
    with logs:
        return _train(build, model, context, rows, callbacks)


def _train(
    build: Callable[..., TrainerType],
    model: PreTrainedModel,
    context: Context,
    rows: Encoded,
    callbacks: Sequence[TrainerCallback],
) -> tuple[dict[str, Any], TrainerType]:
    home = model.device
    set_seed(context.seed)
    trainer = build(
        model=model,
        train_dataset=rows.rows,
        data_collator=rows.collate,
        callbacks=[ProgressCallback(context.progress), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log line
    _decay_matrices_only(trainer)
    folder = Path(str(trainer.args.output_dir))
    checkpoint = last_checkpoint(folder, context.progress)
    before = kept_loss(checkpoint)
    save_whole(trainer, before, context.progress)
    started = time.perf_counter()
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        _plain_forward(model)
        # The Trainer leaves it on the GPU that it found; the steps after this one, measuring and
        # exports are where the model was, so that each step may follow any other.
        cast(nn.Module, model).to(home)
        if context.workdir is None:
            shutil.rmtree(folder, ignore_errors=True)
    model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    # `result.training_loss` is that of the updates since the checkpoint.
    loss = (before + trainer._total_loss_scalar) / max(result.global_step, 1)
    done = {
        "updates": result.global_step,
        "training_loss": round(loss, 4),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return done, trainer


def _plain_forward(model: nn.Module) -> None:
    """Take off the autocast that accelerate leaves around a model trained in bf16: it would
    round what is measured and exported."""
    if "_original_forward" in model.__dict__:
        del model.__dict__["_original_forward"]
        model.__dict__.pop("forward", None)


def _decay_matrices_only(trainer: Trainer) -> None:
    """Weight decay for weights alone.

    The Trainer leaves out biases and the norms that it knows by name; a batch norm's scale is a
    vector, too, and no vector is a weight.
    """
    named = trainer.get_decay_parameter_names

    def matrices(model: nn.Module) -> list[str]:
        sizes = {name: parameter.dim() for name, parameter in model.named_parameters()}
        return [name for name in named(model) if sizes.get(name, 2) > 1]

    trainer.get_decay_parameter_names = matrices  # type: ignore[method-assign]


def trainer_arguments(
    kind: type[Arguments],
    config: FinetuneConfig,
    context: Context,
    rows: Encoded,
    **more: Any,
) -> Arguments:
    """A step's config as a Trainer's arguments.

    Args:
        kind: `TrainingArguments` or a subclass of it.
        config: the step's config.
        context: seed, and the folder of checkpoints.
        rows: their lengths decide how rows are drawn.
        more: further arguments; they go before the config's.
    """
    folder = context.workdir or temporary_folder()
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup,
        "weight_decay": config.weight_decay,
        "label_smoothing_factor": config.label_smoothing,
        "bf16": config.bf16 and not computes_in_fp32(context),
        "use_cpu": trains_on_processor(context.device),
        # Rows of like length together: no time spent on padding.
        "train_sampling_strategy": "random" if rows.lengths is None else "group_by_length",
        "save_strategy": "no" if context.workdir is None else "epoch",
        "seed": context.seed,
        "report_to": [] if config.track is None else [config.track],
        # A tracked training logs its loss at least fifty times.
        "logging_steps": 500 if config.track is None else 0.02,
        "run_name": folder.name if context.logs is None else context.logs[1],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    return kind(**{**arguments, **more})


def computes_in_fp32(context: Context) -> bool:
    """Whether a step that asks for bf16 trains in fp32, with a note: on a processor without it."""
    slow = slow_bf16() if trains_on_processor(context.device) else None
    if slow:
        context.progress.note(slow)
    return slow is not None


def trains_on_processor(device: Device | None) -> bool:
    """Whether training with a recipe's ``device`` leaves the GPU alone, or finds none."""
    return device == "cpu" or not torch.accelerator.is_available()


def training_view(rows: Encoded, config: FinetuneConfig) -> Encoded:
    """The rows as training shows them: images in random views, in the memory format asked for."""
    if not isinstance(rows.collate, (ImageCollator, MaskCollator)):
        return rows
    augmentation = config.image_augmentation
    change = None if augmentation is None else partial(augment_images, config=augmentation)
    return replace(rows, collate=rows.collate.replace(change, config.channels_last))


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


def check_training(model: nn.Module, config: Any) -> None:
    """Refuse trackers that are missing and patterns that match nothing, before anything runs."""
    for part in (config, *(getattr(config, name, None) for name in ("training", "recover"))):
        if isinstance(part, FinetuneConfig):
            if part.track is not None:
                check_tracker(part.track)
            if _is_text(model) and (part.image_augmentation or part.channels_last):
                raise ConfigError(
                    "image_augmentation and channels_last are for models that read images; "
                    "leave them out"
                )
            if part.image_augmentation and infer_task(model) == "pixels":
                raise ConfigError(
                    "image_augmentation changes images and not their masks; leave it out"
                )
        distillation = getattr(part, "distillation", None)
        if isinstance(part, RecoverConfig) and distillation and distillation.compares_passages:
            raise ConfigError(
                "margin_weight and listwise_weight are for a distill step, which keeps the "
                "passages of a query near each other; set them to 0"
            )
    for part in (config, getattr(config, "pruning", None), getattr(config, "prune", None)):
        if part is not None and hasattr(part, "targets"):
            select_targets(model, part.targets, part.exclude)
    if (
        isinstance(config, (RecoverConfig, DistillConfig))
        and config.augmentation
        and not _is_text(model)
    ):
        raise ConfigError("augmentation makes text; leave it out for a model that reads images")


def _is_text(model: nn.Module) -> bool:
    return getattr(model, "main_input_name", "input_ids") == "input_ids"


class ProgressCallback(TrainerCallback):
    """Passes a Trainer's steps on to a `Progress`, and has its losses added up before it saves."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell how far training is."""
        self.progress.work(state.global_step, state.max_steps)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log where a checkpoint is due: logging adds the losses up that `save_whole` keeps."""
        control.should_log |= control.should_save


@contextmanager
def set_up(model: PreTrainedModel, config: FinetuneConfig, device: Device | None) -> Iterator[None]:
    """Dropout, frozen embeddings, attention and memory format while a model trains."""
    with ExitStack() as stack:
        if isinstance(config, (RecoverConfig, DistillConfig)):
            stack.enter_context(dropout(model, config.dropout))
            stack.enter_context(frozen_embeddings(model, config.freeze_embeddings))
        stack.enter_context(fast_attention(model, device))
        stack.enter_context(memory_format(model, config.channels_last))
        yield


@contextmanager
def dropout(model: nn.Module, probability: float | None) -> Iterator[None]:
    """All dropout layers at one probability; None leaves each at its own."""
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    before = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = layer.p if probability is None else probability
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.p = own


@contextmanager
def frozen_embeddings(model: PreTrainedModel, freeze: bool) -> Iterator[None]:
    """Embedding tables without gradients: they hold half of a small model's parameters, and no
    weight that is pruned."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    held = [weight for table in tables for weight in table.parameters() if weight.requires_grad]
    try:
        for weight in held if freeze else []:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in held:
            weight.requires_grad_(True)


@contextmanager
def fast_attention(model: PreTrainedModel, device: Device | None = None) -> Iterator[None]:
    """Plain attention on a CPU, where torch's fused one makes the backward pass slower."""
    before = model.config._attn_implementation
    change = before == "sdpa" and trains_on_processor(device)
    try:
        if change:
            model.set_attn_implementation("eager")
        yield
    finally:
        if change:
            model.set_attn_implementation(before)


@contextmanager
def memory_format(model: nn.Module, channels_last: bool) -> Iterator[None]:
    """Convolutions in channels-last order while they train; plain order is what is saved."""
    formats = (torch.channels_last, torch.contiguous_format)
    try:
        if channels_last:
            _lay_out(model, formats[0])
        yield
    finally:
        if channels_last:
            _lay_out(model, formats[1])


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
