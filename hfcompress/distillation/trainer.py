"""``DistillationTrainer``: a ``Trainer`` whose student also learns from teachers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from hfcompress.distillation.accumulation import (
    LoggedParts,
    Unit,
    UpdateShares,
    count_units,
    units_of,
)
from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.checks import check_setup, check_tokenizers
from hfcompress.distillation.losses import hard_loss
from hfcompress.distillation.teacher_loss import TeacherLoss, listed
from hfcompress.distillation.teacher_outputs import (
    LABELS,
    ROW,
    is_for_teacher,
    labels_of,
    student_inputs,
    without_labels,
)
from hfcompress.distillation.teachers import TeacherLike, first_row, infer_task, logits_of
from hfcompress.errors import ConfigError, DataError, SourceError


class DistillationTrainer(Trainer):
    """A ``Trainer`` whose loss is ``alpha * soft + (1 - alpha) * hard`` plus terms on layers.

    ``hard`` is the loss that ``Trainer`` itself computes; with an alpha of 1 rows need no labels.
    Each part is logged beside the loss, without its weight and averaged over the same updates.
    Evaluation is that of ``Trainer``: the loss on the labels, no teacher. To change a part,
    override `soft_loss` or `position_mask`, or give a function as the teacher.

    The train dataset may have a column ``row`` (each row's number, for kept outputs) and columns
    after ``teacher_`` (``teacher_input_ids``: what a teacher with another tokenizer reads); the
    student is shown neither.

    Args:
        model: the student; any module that gives logits.
        args: `DistillationArguments`.
        teacher: a model, a function of the batch, kept outputs, or a list of these.
        teacher_processing_class: the teacher's tokenizer, where it may not be the student's.
        *others: those of ``Trainer``.

    Raises:
        ConfigError: no `DistillationArguments`, a layer map out of range, or teacher weights that
            do not fit.
        ModelError: labels, tokenizers or layers that differ.
        DataError: an empty train dataset.
    """

    args: DistillationArguments

    def __init__(
        self,
        model: nn.Module | None = None,
        args: DistillationArguments | None = None,
        *others: Any,
        teacher: TeacherLike | Sequence[TeacherLike],
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, DistillationArguments):
            raise ConfigError(
                f"DistillationTrainer needs DistillationArguments, not {type(args).__name__}"
            )
        super().__init__(model, args, *others, **kwargs)
        self.distillation = args.distillation_config()
        student: Any = self.model
        self._takes_labels = bool(set(LABELS) & set(inspect.signature(student.forward).parameters))
        if not self._takes_labels and args.label_names is None:
            self.label_names = ["labels"]
        row = first_row(self.train_dataset)
        task = self.distillation.task or infer_task(student, row.get("labels"))
        self.distillation = self.distillation.replace(task=task)
        tokenizers = (self.processing_class, teacher_processing_class)
        check_setup(args, self.distillation, self.train_dataset)
        check_tokenizers(student, listed(teacher), self.distillation, tokenizers, row)
        self.teaching = TeacherLoss(student, teacher, self.distillation, self.soft_loss)
        self.teaching.close()  # its hooks are there while it trains
        self.add_callback(ProjectionCallback(self.teaching.layers, self.accelerator))
        self._columns = sorted({ROW, *row})
        self._shares = UpdateShares()
        self._logged = LoggedParts()
        self._projected = False
        self._renews_model = kwargs.get("model_init") is not None

    # --- what a subclass may change --------------------------------------------------------------

    def soft_loss(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Distance from one teacher, a mean over what the mask counts.

        Args:
            student_logits: of the shape that `losses.Task` says.
            teacher_logits: as the student's.
            mask: what `position_mask` gave for the batch.
        """
        return self.teaching.loss.soft(student_logits, teacher_logits, mask)

    def position_mask(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """What counts of the logits, as `losses.soft_loss` takes it; by default no padding."""
        return self.teaching.position_mask(inputs)

    # --- the loss --------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted loss on labels, teachers and layers; the loss on labels in evaluation."""
        own = student_inputs(inputs)
        if not model.training:
            loss, outputs = self._hard_loss(model, own, num_items_in_batch)
            return (loss, outputs) if return_outputs else loss
        progress = self.state.global_step, self.state.max_steps
        self.teaching.loss.temperature, alpha = self.distillation.balance(*progress)
        self.teaching.weights["soft_loss"] = alpha
        parts: dict[str, Tensor] = {}
        if alpha < 1 and self._labelled(own):
            # No number of items: the mean of this batch, which _shared weighs among the others.
            parts["hard_loss"], outputs = self._hard_loss(model, own)
        else:
            outputs = model(**without_labels(own))
        parts |= self.teaching.terms(inputs, outputs, self.position_mask(inputs))
        parts = self._shared(parts, inputs)
        self._logged.add(parts, self.state.global_step)
        weights = {"hard_loss": 1 - alpha, **self.teaching.weights}
        weighted = [weights[name] * part for name, part in parts.items()]
        # A batch without labels or teacher adds nothing, and still has a gradient to add.
        loss = torch.stack(weighted or [0.0 * logits_of(outputs).sum()]).sum()
        loss = loss * self._division(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _hard_loss(
        self, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None = None
    ) -> tuple[Tensor, Any]:
        """The loss on the labels and the student's outputs."""
        if self._takes_labels or self.compute_loss_func is not None:
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items
            )
            return loss, outputs
        outputs = model(**without_labels(inputs))
        labels = labels_of(inputs)
        assert labels is not None
        return hard_loss(logits_of(outputs).float(), labels, self.teaching.task), outputs

    def _labelled(self, inputs: Mapping[str, Any]) -> bool:
        """Whether any row of the batch has a label."""
        labels = labels_of(inputs)
        if labels is None:
            raise DataError(
                "the rows have no labels; set alpha to 1 to learn from the teacher only"
            )
        return labels.is_floating_point() or bool((labels != -100).any())

    # --- updates of several batches, and logs ----------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """As ``Trainer.get_batch_samples``; counts what the losses are means over."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        several = len(samples) * self.accelerator.num_processes > 1
        self._shares.start([self._units(batch) for batch in samples if several], self._everywhere)
        return samples, items

    def _units(self, inputs: Mapping[str, Any]) -> dict[Unit, Tensor]:
        # A span is a distribution over the positions: what counts then is the rows.
        spans = self.teaching.task == "spans"
        return count_units(inputs, labels_of(inputs), None if spans else self.position_mask(inputs))

    def _everywhere(self, count: Tensor) -> Tensor:
        """A number over all processes; a process's part of it, as gradients are averaged."""
        if not self.args.average_tokens_across_devices:
            return count
        total: Tensor = self.accelerator.reduce(count.to(self.args.device).float(), "mean")
        return total

    def _shared(self, parts: dict[str, Tensor], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Each part as its share in the update."""
        if not self._shares:
            return parts
        shares = self._shares.of(self._units(inputs))
        units = units_of(self.teaching.task, self.distillation.hidden_distance)
        return {name: part * shares[units[name]] for name, part in parts.items()}

    def _division(self, num_items_in_batch: Tensor | int | None) -> float:
        """By how much the Trainer is about to divide a loss that is a share already."""
        if not self._shares or self.compute_loss_func is not None:
            return 1.0
        normalized = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return 1.0 if normalized else float(self.current_gradient_accumulation_steps)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the loss's parts, and what a schedule has reached, to a training log."""
        if "loss" in logs:
            logs.update(self._logged.take(self.state.global_step, self._average))
            if self.distillation.schedule != "constant":
                logs["temperature"] = self.teaching.loss.temperature
                logs["alpha"] = self.teaching.weights["soft_loss"]
        super().log(logs, *args, **kwargs)

    def _average(self, value: Tensor) -> Tensor:
        mean: Tensor = self.accelerator.gather(value.float().reshape(1)).mean()
        return mean

    # --- around the training ---------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As ``Trainer.train``; layers are read while it runs."""
        with self.teaching:
            if not self._renews_model:
                self._add_projections(self.model)
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def call_model_init(self, trial: Any = None) -> Any:
        """As ``Trainer.call_model_init``; the new student is the one that is watched."""
        student = super().call_model_init(trial)
        if hasattr(self, "teaching"):  # not while the Trainer is built
            self.teaching.watch(student)
            self._projected = False
            self._add_projections(student.to(self.args.device))
        return student

    def _add_projections(self, student: Any) -> None:
        """Learned projections where widths differ: one row shows the widths."""
        if not self.distillation.hidden_weight or self._projected:
            return
        self._projected = True
        cuda = [self.args.device] if self.args.device.type == "cuda" else []
        # The weights of the projections and the look at one row leave the training's chance alone.
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            torch.manual_seed(self.args.seed)
            loader = self.get_train_dataloader()
            batch = self._prepare_inputs(loader.collate_fn([next(iter(loader.dataset))]))
            student.eval()
            outputs = student(**without_labels(student_inputs(batch)))
            self.teaching.add_projections(batch, outputs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As ``Trainer.create_optimizer``, with the projections as a group without weight decay."""
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        projections = list(self.teaching.layers.parameters())
        if fresh and projections:
            optimizer.add_param_group({"params": projections, "weight_decay": 0.0})
        return optimizer

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """As ``Trainer.prediction_step``, on what the student reads."""
        step: tuple[Any, Any, Any] = super().prediction_step(
            model, student_inputs(inputs), *args, **kwargs
        )
        return step

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            save_projections(self.teaching.layers, Path(self._get_output_dir(trial=trial)) / name)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_projections(self.teaching.layers, Path(resume_from_checkpoint))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        kept: list[str] = getattr(self, "_signature_columns")  # noqa: B009  # typed as None
        kept += [
            name for name in (ROW, *self._columns) if name not in kept and is_for_teacher(name)
        ]


PROJECTIONS_FILE = "distillation_projections.safetensors"
"""The file that holds the projections, in each checkpoint folder."""


class ProjectionCallback(TrainerCallback):
    """Does for the projections what a ``Trainer`` does for its model's parameters.

    Args:
        layers: the modules that hold them.
        accelerator: the Trainer's.
    """

    def __init__(self, layers: nn.Module, accelerator: Any) -> None:
        self.layers = layers
        self.accelerator = accelerator

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gradients are complete: average them over the processes."""
        for parameter in self.layers.parameters():
            if parameter.grad is not None and self.accelerator.num_processes > 1:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer has used the gradients."""
        self.layers.zero_grad()


def save_projections(layers: nn.Module, folder: Path) -> None:
    """Write the projections into a checkpoint folder; nothing where there are none."""
    weights = {name: value.contiguous() for name, value in layers.state_dict().items()}
    if weights:
        save_file(weights, folder / PROJECTIONS_FILE)


def load_projections(layers: nn.Module, folder: Path) -> None:
    """Read the projections of a checkpoint folder.

    Raises:
        SourceError: there are projections, and none in the folder.
    """
    if not layers.state_dict():
        return
    path = folder / PROJECTIONS_FILE
    if not path.is_file():
        raise SourceError(
            f"training resumes from {folder}, and {path.name} with its projections is not there; "
            "resume from a checkpoint that was written with the same hidden_weight"
        )
    layers.load_state_dict(load_file(path))
