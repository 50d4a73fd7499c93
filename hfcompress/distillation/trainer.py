"""``DistillationTrainer``: a ``Trainer`` with the losses of teachers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
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
    Inputs,
    is_for_teacher,
    labels_of,
    student_inputs,
    without_labels,
)
from hfcompress.distillation.teachers import TeacherLike, first_row, infer_task, logits_of
from hfcompress.errors import ConfigError, DataError, SourceError

Trial = Any  # optuna's trial or a dict, as transformers types it


class DistillationTrainer(Trainer):
    """A ``Trainer`` whose loss is ``alpha * soft + (1 - alpha) * hard`` plus terms on layers.

    ``hard`` is the loss that ``Trainer`` computes; with an alpha of 1 rows need no labels. The
    unweighted parts are logged beside the loss, averaged over the same updates. Evaluation is that
    of ``Trainer``: the loss on the labels, without teachers. To change a part, override
    `soft_loss` or `position_mask`, or give a function as the teacher.

    The train dataset may have a column ``row`` (row numbers for a `TeacherCache`) and columns with
    the prefix ``teacher_`` (``teacher_input_ids``, for a teacher with another tokenizer); the
    student receives neither.

    Args:
        model: the student; any module that returns logits.
        args: `DistillationArguments`.
        teacher: a model, a function of the batch, a `TeacherCache`, or a list of these.
        teacher_processing_class: the teacher's tokenizer, if it may differ from the student's.
        *others: further arguments of ``Trainer``.

    Raises:
        ConfigError: other training arguments, a layer map out of range, or a wrong number of
            teacher weights.
        ModelError: different labels, tokenizers or layers.
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
        student = cast(nn.Module, self.model)
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
        self.teaching.close()  # train() sets the hooks
        self.add_callback(ProjectionCallback(self.teaching.layers, self.accelerator))
        self._columns = sorted({ROW, *row})
        self._shares = UpdateShares()
        self._logged = LoggedParts()
        self._projected = False
        self._has_model_init = kwargs.get("model_init") is not None

    # --- for subclasses --------------------------------------------------------------------------

    def soft_loss(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Return the distance from one teacher, a mean over the unmasked positions.

        Args:
            student_logits: shape by `losses.Task`.
            teacher_logits: as the student's.
            mask: the batch's `position_mask`.
        """
        return self.teaching.loss.soft(student_logits, teacher_logits, mask)

    def position_mask(self, inputs: Inputs) -> Tensor | None:
        """Return the mask of logits that count, as in `losses.soft_loss`; by default no padding."""
        return self.teaching.position_mask(inputs)

    # --- the loss --------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        """Return the weighted loss of all terms; in evaluation the loss on the labels."""
        own = student_inputs(inputs)
        if not model.training:
            loss, outputs = self._hard_loss(model, own, num_items_in_batch)
            return (loss, outputs) if return_outputs else loss
        progress = self.state.global_step, self.state.max_steps
        self.teaching.loss.temperature, alpha = self.distillation.balance(*progress)
        self.teaching.weights["soft_loss"] = alpha
        parts: dict[str, Tensor] = {}
        if alpha < 1 and self._labelled(own):
            # Without num_items it is the mean of this batch, which _shared scales by its share.
            parts["hard_loss"], outputs = self._hard_loss(model, own)
        else:
            outputs = model(**without_labels(own))
        parts |= self.teaching.terms(inputs, outputs, self.position_mask(inputs))
        parts = self._shared(parts, inputs)
        self._logged.add(parts, self.state.global_step)
        weights = {"hard_loss": 1 - alpha, **self.teaching.weights}
        weighted = [weights[name] * part for name, part in parts.items()]
        # If no term applies, use a zero connected to the graph, because backward() still runs.
        loss = torch.stack(weighted or [0.0 * logits_of(outputs).sum()]).sum()
        loss = loss * self._divisor(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _hard_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items: Tensor | int | None = None
    ) -> tuple[Tensor, object]:
        """Return the loss on the labels and the student's outputs."""
        if self._takes_labels or self.compute_loss_func is not None:
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items
            )
            return loss, outputs
        outputs = model(**without_labels(inputs))
        labels = labels_of(inputs)
        assert labels is not None
        return hard_loss(logits_of(outputs).float(), labels, self.teaching.task), outputs

    def _labelled(self, inputs: Inputs) -> bool:
        """Return whether any row of the batch has a label."""
        labels = labels_of(inputs)
        if labels is None:
            raise DataError(
                "the rows have no labels; set alpha to 1 to learn from the teacher only"
            )
        return labels.is_floating_point() or bool((labels != -100).any())

    # --- accumulated updates and logs ------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Inputs], num_batches: int, device: torch.device
    ) -> tuple[list[Inputs], Tensor | int | None]:
        """As ``Trainer.get_batch_samples``; also counts the units of each loss."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        several = len(samples) * self.accelerator.num_processes > 1
        self._shares.start([self._units(batch) for batch in samples if several], self._everywhere)
        return samples, items

    def _units(self, inputs: Inputs) -> dict[Unit, Tensor]:
        # A span is a distribution over the positions, so its losses are means over rows.
        spans = self.teaching.task == "spans"
        return count_units(inputs, labels_of(inputs), None if spans else self.position_mask(inputs))

    def _everywhere(self, count: Tensor) -> Tensor:
        """Average a count over the processes, as gradients are averaged."""
        if not self.args.average_tokens_across_devices:
            return count
        total: Tensor = self.accelerator.reduce(count.to(self.args.device).float(), "mean")
        return total

    def _shared(self, parts: dict[str, Tensor], inputs: Inputs) -> dict[str, Tensor]:
        """Scale each part by the batch's share in the update."""
        if not self._shares:
            return parts
        shares = self._shares.of(self._units(inputs))
        units = units_of(self.teaching.task, self.distillation.hidden_distance)
        return {name: part * shares[units[name]] for name, part in parts.items()}

    def _divisor(self, num_items_in_batch: Tensor | int | None) -> float:
        """Return the divisor that ``Trainer`` applies to the loss, which shares must undo."""
        if not self._shares or self.compute_loss_func is not None:
            return 1.0
        normalized = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return 1.0 if normalized else float(self.current_gradient_accumulation_steps)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, and scheduled values, to a training log."""
        if "loss" in logs:
            logs.update(self._logged.take(self.state.global_step, self._average))
            if self.distillation.schedule != "constant":
                logs["temperature"] = self.teaching.loss.temperature
                logs["alpha"] = self.teaching.weights["soft_loss"]
        super().log(logs, start_time)

    def _average(self, value: Tensor) -> Tensor:
        mean: Tensor = self.accelerator.gather(value.float().reshape(1)).mean()
        return mean

    # --- around the training ---------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Trial = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As ``Trainer.train``, with hooks on the compared layers."""
        with self.teaching:
            if not self._has_model_init:
                self._add_projections(cast(nn.Module, self.model))
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def call_model_init(self, trial: Trial = None) -> nn.Module:
        """As ``Trainer.call_model_init``; moves the hooks to the new student."""
        student: nn.Module = super().call_model_init(trial)
        if hasattr(self, "teaching"):  # not in Trainer.__init__
            self.teaching.watch(student)
            self._projected = False
            self._add_projections(student.to(self.args.device))
        return student

    def _add_projections(self, student: nn.Module) -> None:
        """Add learned projections where widths differ, found by a forward pass of one row."""
        if not self.distillation.hidden_weight or self._projected:
            return
        self._projected = True
        cuda = [self.args.device] if self.args.device.type == "cuda" else []
        # Fork the random state, so that projections do not change the training's random numbers.
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            torch.manual_seed(self.args.seed)
            loader = self.get_train_dataloader()
            batch = self._prepare_inputs(loader.collate_fn([next(iter(loader.dataset))]))
            student.eval()
            outputs = student(**without_labels(student_inputs(batch)))
            self.teaching.add_projections(batch, outputs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As ``Trainer.create_optimizer``; adds projections as a group without weight decay."""
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        projections = list(self.teaching.layers.parameters())
        if fresh and projections:
            optimizer.add_param_group({"params": projections, "weight_decay": 0.0})
        return optimizer

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Inputs,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As ``Trainer.prediction_step``, on the student's columns."""
        step: tuple[Tensor | None, Tensor | None, Tensor | None] = super().prediction_step(
            model, student_inputs(inputs), prediction_loss_only, ignore_keys
        )
        return step

    def _save_checkpoint(self, model: nn.Module, trial: Trial) -> None:
        super()._save_checkpoint(model, trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            save_projections(self.teaching.layers, Path(self._get_output_dir(trial=trial)) / name)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_projections(self.teaching.layers, Path(resume_from_checkpoint))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        kept: list[str] = getattr(self, "_signature_columns")  # noqa: B009  # typed as None
        kept += [
            name for name in (ROW, *self._columns) if name not in kept and is_for_teacher(name)
        ]


PROJECTIONS_FILE = "distillation_projections.safetensors"
"""The file with the projections in a checkpoint folder."""


class ProjectionCallback(TrainerCallback):
    """Synchronises and clears gradients of projections, as ``Trainer`` does for its model.

    Args:
        layers: the modules with projections.
        accelerator: the Trainer's.
    """

    def __init__(self, layers: nn.Module, accelerator: Accelerator) -> None:
        self.layers = layers
        self.accelerator = accelerator

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Average the gradients over the processes."""
        for parameter in self.layers.parameters():
            if parameter.grad is not None and self.accelerator.num_processes > 1:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Clear the gradients."""
        self.layers.zero_grad()


def save_projections(layers: nn.Module, folder: Path) -> None:
    """Write the projections, if any, into a checkpoint folder."""
    weights = {name: value.contiguous() for name, value in layers.state_dict().items()}
    if weights:
        save_file(weights, folder / PROJECTIONS_FILE)


def load_projections(layers: nn.Module, folder: Path) -> None:
    """Load the projections from a checkpoint folder.

    Raises:
        SourceError: the folder has no projections.
    """
    if not layers.state_dict():
        return
    path = folder / PROJECTIONS_FILE
    if not path.is_file():
        raise SourceError(
            f"cannot resume from {folder}: {path.name} is missing; use a checkpoint written "
            "with a hidden_weight, or set hidden_weight to 0"
        )
    layers.load_state_dict(load_file(path))
