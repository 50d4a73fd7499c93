"""``DistillationTrainer``: a ``Trainer`` with the losses of teachers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Sampler
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.checks import check_labels, check_setup, check_tokenizers
from hfcompress.distillation.config import DistillationTrainingConfig
from hfcompress.distillation.losses import DistillationLoss
from hfcompress.distillation.sampling import QuerySampler
from hfcompress.distillation.teacher_loss import TeacherLoss, listed
from hfcompress.distillation.teacher_outputs import (
    QUERY,
    ROW,
    is_for_teacher,
    student_inputs,
    without_labels,
)
from hfcompress.distillation.teachers import TeacherLike
from hfcompress.errors import ConfigError, DataError, SourceError
from hfcompress.inference import logits_in, with_decoder_inputs
from hfcompress.models.outputs import VECTORS
from hfcompress.training.hard_loss import Task
from hfcompress.training.outputs import (
    LABELS,
    Inputs,
    labels_of,
)
from hfcompress.training.trainer import TermsTrainer, Trial


class DistillationTrainer(TermsTrainer):
    """A ``Trainer`` whose loss is ``alpha * soft + (1 - alpha) * hard`` plus terms on layers.

    ``hard`` is the loss that ``Trainer`` computes (see `TermsTrainer`); with an alpha of 1 rows
    need no labels. The unweighted parts are logged beside the loss, averaged over the same updates.
    Evaluation is that of ``Trainer``: the loss on the labels, without teachers. The options are
    read from ``args`` when a training starts. To change a part, override `soft_loss` or
    `position_mask`, or give a function as the teacher.

    The train dataset may have a column ``row`` (row numbers for a `TeacherCache`), a column
    ``query`` (the number of each row's query, for ``margin_weight`` and ``listwise_weight``: rows
    of a query are then near each other) and columns with the prefix ``teacher_``
    (``teacher_input_ids``, for a teacher with another tokenizer); the student receives none.

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
        DataError: an empty train dataset, or a DataLoader.
    """

    args: DistillationArguments
    no_labels = "the rows have no labels; set alpha to 1 to learn from the teacher only"

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
        self._teachers = listed(teacher)
        self._tokenizers = (self.processing_class, teacher_processing_class)
        self._checked = False
        self.distillation = args.distillation_config()
        check_setup(args, self.distillation, self.train_dataset)
        check_labels(cast(nn.Module, self.model), self.train_dataset, (*LABELS, *self.label_names))
        columns = _columns(self.train_dataset)
        if columns is not None:
            self._check_columns(columns)
        self.teaching = self._make_teaching(self.distillation)
        self.teaching.close()  # begin_training() sets the hooks
        self.add_callback(ProjectionCallback(self))
        self._projected = False

    # --- for subclasses --------------------------------------------------------------------------

    def soft_loss(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Return the distance from one teacher, a mean over the unmasked positions.

        Args:
            student_logits: shape by `Task`.
            teacher_logits: as the student's.
            mask: the batch's `position_mask`.
        """
        return self.teaching.loss.soft(student_logits, teacher_logits, mask)

    def position_mask(self, inputs: Inputs) -> Tensor | None:
        """Return the mask of logits that count, as in `losses.soft_loss`; by default no padding,
        and of taggers no token without a label."""
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
            loss, outputs = self.task_loss(model, own, num_items_in_batch)
            return (loss, outputs) if return_outputs else loss
        progress = self.state.global_step, self.state.max_steps
        self.teaching.loss.temperature, alpha = self.distillation.balance(*progress)
        self.teaching.weights["soft_loss"] = alpha
        parts: dict[str, Tensor] = {}
        if alpha < 1:
            parts["hard_loss"], outputs = self.task_loss(model, own, num_items_in_batch)
        else:
            shown = with_decoder_inputs(self.teaching.student, own)
            outputs = model(**without_labels(shown, self.label_names))
        shown = with_decoder_inputs(self.teaching.student, inputs)
        taught = without_labels(shown, self.label_names)
        terms = self.teaching.terms(taught, outputs, self.position_mask(inputs))
        parts |= self.in_update(terms, inputs, num_items_in_batch)
        self.log_parts(parts, num_items_in_batch)
        weights = {"hard_loss": 1 - alpha, **self.teaching.weights}
        weighted = [weights[name] * part for name, part in parts.items()]
        # If no term applies, use a zero connected to the graph, because backward() still runs.
        loss = torch.stack(weighted or [0.0 * logits_in(outputs).sum()]).sum()
        return (loss, outputs) if return_outputs else loss

    def part_counts(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return what each part of the loss averages over in a batch, by the part's name."""
        taught = self.teaching.counts_of(inputs, self.position_mask(inputs))
        return super().part_counts(inputs) | taught

    def label_task(self, labels: Tensor | None) -> Task:
        """Return what the logits mean: by the arguments, or else by model and labels."""
        return self.distillation.task or super().label_task(labels)

    def see_batch(self, inputs: Inputs) -> None:
        """Check the columns of a training's first batch, and take the task from its labels."""
        if self._checked:
            return
        self._check_columns(inputs)
        task = self.label_task(labels_of(inputs, self.label_names))
        if task != self.teaching.task:
            self.teaching.loss = DistillationLoss(self.distillation.temperature, task=task)
        self._checked = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, and scheduled values, to a training log."""
        if "loss" in logs and self.distillation.schedule != "constant":
            logs["temperature"] = self.teaching.loss.temperature
            logs["alpha"] = self.teaching.weights["soft_loss"]
        super().log(logs, start_time)

    # --- around the training ---------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Trial = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As ``Trainer.train``, with hooks on the compared layers."""
        given = self.train_dataset
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.teaching.close()
            self.train_dataset = given

    def begin_training(self) -> None:
        """Read the options from ``args``, set the hooks, and add projections where widths differ.

        Raises:
            ConfigError, ModelError: as the constructor.
        """
        config, student = self.args.distillation_config(), cast(nn.Module, self.model)
        if config != self.distillation or student is not self.teaching.student:
            check_setup(self.args, config, self.train_dataset)
            teaching = self._make_teaching(config)
            self.teaching.close()
            self.teaching, self.distillation, self._projected = teaching, config, False
        self._checked = False
        self.teaching.open()
        projects = self.distillation.hidden_weight or self.teaching.task in VECTORS
        if projects and not self._projected:
            self._add_projections(student)
            self._projected = True

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        """As of ``Trainer``; passages of a query are near each other where they are compared."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        columns = _columns(rows) or ()
        if not self.distillation.compares_passages or QUERY not in columns:
            found: Sampler[int] | None = super()._get_train_sampler(train_dataset)
            return found
        return QuerySampler(cast(Any, rows)[QUERY][:], self.args.seed)

    def _make_teaching(self, config: DistillationTrainingConfig) -> TeacherLoss:
        student = cast(nn.Module, self.model)
        return TeacherLoss(student, self._teachers, config, self.soft_loss)

    def _check_columns(self, columns: Collection[str]) -> None:
        student = cast(nn.Module, self.model)
        check_tokenizers(student, self._teachers, self.distillation, self._tokenizers, columns)

    def _add_projections(self, student: nn.Module) -> None:
        """Add learned projections where widths differ, found by a forward pass of one row."""
        cuda = [self.args.device] if self.args.device.type == "cuda" else []
        # Fork the random state, so that projections do not change the training's random numbers.
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            torch.manual_seed(self.args.seed)
            row = self._take_row()
            loader = Trainer.get_train_dataloader(self)
            if row is None:
                row = next(iter(loader.dataset))
            batch = self._prepare_inputs(loader.collate_fn([row]))
            student.to(self.args.device).eval()
            shown = without_labels(student_inputs(batch), self.label_names)
            self.teaching.add_projections(batch, student(**shown))

    def _take_row(self) -> object:
        """Return the first row of a stream, which the training will read again; else None."""
        dataset = self.train_dataset
        if not isinstance(dataset, IterableDataset):
            return None
        rows = iter(dataset)
        row: object = next(rows, None)
        if row is None:
            raise DataError("the train dataset is empty; distillation needs at least one row")
        if not self.args.dataloader_num_workers:  # workers read their own copies of the stream
            self.train_dataset = cast(Any, _GivenBack(dataset, row, rows))
        return row

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As ``Trainer.create_optimizer``; adds projections as a group without weight decay.

        To an optimizer of the caller they are added as members of its last group, because its
        scheduler may know the number of groups.
        """
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        trained = {id(item) for group in optimizer.param_groups for item in group["params"]}
        new = [item for item in self.teaching.layers.parameters() if id(item) not in trained]
        if new and fresh:
            optimizer.add_param_group({"params": new, "weight_decay": 0.0})
        elif new:
            optimizer.param_groups[-1]["params"].extend(new)
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

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_projections(self.teaching.layers, Path(checkpoint))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        kept: list[str] = getattr(self, "_signature_columns")  # noqa: B009  # typed as None
        if isinstance(kept, _Kept):
            return
        columns = _columns(self.train_dataset) or ()
        self._signature_columns = cast(
            Any, _Kept([*kept, ROW, QUERY, *filter(is_for_teacher, columns)])
        )


class _Kept(list[str]):
    """Names of columns that are kept; each column for the teacher is one of them."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and is_for_teacher(name))


class _GivenBack(IterableDataset[Any]):
    """A stream whose first row was taken: the first reading gives it again."""

    def __init__(self, stream: Iterable[object], row: object, rest: Iterator[object]) -> None:
        self._stream, self._row = stream, row
        self._rest: Iterator[object] | None = rest

    def __iter__(self) -> Iterator[object]:
        rest, self._rest = self._rest, None
        if rest is None:
            yield from self._stream
            return
        yield self._row
        yield from rest

    def __len__(self) -> int:
        return len(cast(Any, self._stream))

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["_stream"], name)


def _columns(dataset: object) -> list[str] | None:
    """Return the names of a dataset's columns without reading a row, or None if unknown."""
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list):
        return [str(name) for name in names]
    rows = dataset if isinstance(dataset, (list, tuple)) else ()
    return [str(name) for name in rows[0]] if rows and isinstance(rows[0], Mapping) else None


PROJECTIONS_FILE = "distillation_projections.safetensors"
"""The file with the projections in a checkpoint folder."""


class ProjectionCallback(TrainerCallback):
    """Synchronises and clears gradients of projections, as ``Trainer`` does for its model.

    Args:
        trainer: whose projections.
    """

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Average the gradients over the processes."""
        accelerator = self.trainer.accelerator
        for parameter in self.trainer.teaching.layers.parameters():
            if parameter.grad is not None and accelerator.num_processes > 1:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Clear the gradients."""
        self.trainer.teaching.layers.zero_grad()


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
            "by a training with the same weights of losses, or set hidden_weight to 0"
        )
    layers.load_state_dict(load_file(path))
