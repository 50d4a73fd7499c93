"""``TermsTrainer``: a ``Trainer`` that adds further terms to its own loss."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from hfcompress.errors import ConfigError, DataError
from hfcompress.inference import forward_names, logits_in
from hfcompress.training.hard_loss import Task, hard_loss
from hfcompress.training.outputs import (
    LABELS,
    Inputs,
    infer_task,
    is_causal,
    is_transformers,
    labels_of,
    loss_of,
    no_label,
)
from hfcompress.training.shares import ItemCount, LoggedParts, UpdateShares
from hfcompress.utils import unwrapped

Trial = Any  # optuna's trial or a dict, as transformers types it
Items = Tensor | int | None
"""The labelled items of a whole update, as ``Trainer`` counts them; None where it cannot."""


class _NoLossError(Exception):
    """A model's outputs hold no loss."""


class _Run:
    """Calls a model for ``Trainer.compute_loss``, which takes the loss out of its outputs."""

    def __init__(self, model: nn.Module, needs_loss: bool) -> None:
        self.model, self.needs_loss = model, needs_loss
        self.outputs: object = None

    def __call__(self, **inputs: Tensor) -> object:
        self.outputs = self.model(**inputs)
        loss = loss_of(self.outputs)
        if self.needs_loss and loss is None:
            raise _NoLossError
        if isinstance(self.outputs, (Mapping, tuple)):
            return self.outputs
        logits = {"logits": logits_in(self.outputs)}
        return logits if loss is None else {"loss": loss, **logits}


class TermsTrainer(Trainer):
    """A ``Trainer`` that knows its loss for each model, and each batch's share in an update.

    `task_loss` is what ``Trainer.compute_loss`` gives, with two differences. A model that returns
    logits only is trained on `hard_loss`. And where ``Trainer`` would add the means of accumulated
    batches up, because the loss does not divide by ``num_items_in_batch`` (BERT's at transformers
    5.23), it is the mean over the update.

    Raises:
        DataError: a DataLoader in place of a dataset.
        ConfigError: label smoothing of a model without a config.
    """

    no_labels = "the rows have no labels and the model returns no loss; add a column labels"

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *others: Any,
        **kwargs: Any,
    ) -> None:
        _check_setup(model, args, kwargs)
        super().__init__(model, args, *others, **kwargs)
        _refuse_loaders(self.train_dataset, self.eval_dataset)
        student = cast(nn.Module, self.model)
        self._forward_names, self._takes_any = forward_names(student)
        if hasattr(student, "_orig_mod"):  # Trainer has looked at the wrapper of torch.compile
            accepts = getattr(unwrapped(student), "accepts_loss_kwargs", self._takes_any)
            self.model_accepts_loss_kwargs = bool(accepts)
        self._names_labels = bool(self._forward_names & {*LABELS, *self.label_names})
        if not (self.label_names or self.can_return_loss) and self.args.label_names is None:
            self.label_names = ["labels"]
        self._shares = UpdateShares()
        self._logged = LoggedParts()
        self._reads_items: bool | None = None

    # --- the loss on the labels ------------------------------------------------------------------

    def task_loss(
        self, model: nn.Module, inputs: Inputs, items: Items = None
    ) -> tuple[Tensor, object]:
        """Return the loss on the labels as ``Trainer`` expects it, and the model's outputs.

        Args:
            model: the student, wrapped or not.
            inputs: the columns that it may read.
            items: of the whole update.

        Raises:
            DataError: the model returns no loss, and the batch has no labels.
        """
        labels = labels_of(inputs, self.label_names)
        try:
            loss, outputs, is_mean = self._computed(model, dict(inputs), labels, items)
        except _NoLossError:
            raise DataError(self.no_labels) from None
        if not model.training:
            return loss, outputs
        if not torch.isfinite(loss).all() and not self._count_labels(inputs):
            return 0.0 * logits_in(outputs).sum(), outputs  # the mean of no labels is NaN
        if is_mean and self._shares:
            share = self._shares.of(self.part_counts(inputs))["hard_loss"]
            loss = loss * share * self.loss_divisor(items)
        return loss, outputs

    def _computed(
        self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor | None, items: Items
    ) -> tuple[Tensor, object, bool]:
        """Return loss, outputs, and whether the loss is the mean of this batch, scaled by none."""
        pops = self.label_smoother is not None and "labels" in inputs
        named = self._names_labels and labels is not None
        if self.compute_loss_func is not None or (
            is_transformers(cast(nn.Module, self.model)) and (named or pops)
        ):
            return self._by_trainer(model, inputs, items)
        run = _Run(model, needs_loss=not pops)
        shown = self.readable(inputs, ("labels",) if pops else ())
        try:
            return self._by_trainer(run, shown, items)
        except _NoLossError:
            if labels is None:
                raise
        logits = logits_in(run.outputs).float()
        loss = hard_loss(logits, labels, self.label_task(labels))
        outputs = {"logits": run.outputs} if isinstance(run.outputs, Tensor) else run.outputs
        return loss, outputs, True

    def label_task(self, labels: Tensor | None) -> Task:
        """Return what the logits of a model without a loss mean, by its labels."""
        row = labels[0] if isinstance(labels, Tensor) and labels.dim() else None
        return infer_task(cast(nn.Module, self.model), row)

    def readable(self, inputs: Inputs, popped: Collection[str] = ()) -> dict[str, Tensor]:
        """Return a batch without the labels that ``forward`` does not take.

        Args:
            inputs: the batch.
            popped: labels that ``Trainer`` takes out.
        """
        if self._takes_any:
            return dict(inputs)
        hidden = {*LABELS, *self.label_names} - self._forward_names
        return {name: inputs[name] for name in inputs if name not in hidden or name in popped}

    def _by_trainer(
        self, model: nn.Module | _Run, inputs: dict[str, Tensor], items: Items
    ) -> tuple[Tensor, object, bool]:
        """Return ``Trainer.compute_loss``, and whether its loss ignores the number of items."""
        if not self._may_add_up(items):
            loss, outputs = self._of_trainer(model, inputs, items)
            return loss, outputs, False
        assert items is not None
        count, function = ItemCount.of(items), self.compute_loss_func
        reads: bool | None = None
        if function is not None:
            self.compute_loss_func = _told(function, count)
        elif self._is_plain(model):
            items = count
        else:
            reads = self._reads_items_once(inputs, count)
        try:
            loss, outputs = self._of_trainer(model, inputs, items)
        finally:
            self.compute_loss_func = function
        if reads or (reads is None and count.reads):
            return loss, outputs, False
        return loss / self._processes(), outputs, True

    def _of_trainer(
        self, model: nn.Module | _Run, inputs: dict[str, Tensor], items: Items
    ) -> tuple[Tensor, object]:
        loss, outputs = super().compute_loss(
            cast(nn.Module, model), inputs, return_outputs=True, num_items_in_batch=items
        )
        return loss, outputs

    def _may_add_up(self, items: Items) -> bool:
        """Return whether ``Trainer`` sums the losses of several batches as they are."""
        if not self._shares or items is None or self.loss_is_scaled_for_ga is not None:
            return False
        return self.model_accepts_loss_kwargs or self.compute_loss_func is not None

    def _is_plain(self, model: nn.Module | _Run) -> bool:
        """Return whether a call of the model is the student's own ``forward``."""
        called = model.model if isinstance(model, _Run) else model
        student = cast(nn.Module, self.model)
        compiled = any(hasattr(part, "_orig_mod") for part in (called, student))
        in_place = getattr(student, "_compiled_call_impl", None) is not None
        return called is student and not compiled and not in_place

    @torch.no_grad()
    def _reads_items_once(self, inputs: Mapping[str, Tensor], count: ItemCount) -> bool:
        """Return whether the loss reads the number of items, by one call of the bare model.

        Inside a compiled or replicated model the number cannot be followed.
        """
        if self.label_smoother is not None and "labels" in inputs:
            return True
        if self._reads_items is None:
            student = unwrapped(cast(nn.Module, self.model))
            training = student.training
            cuda = [self.args.device] if self.args.device.type == "cuda" else []
            with torch.random.fork_rng(devices=cuda):
                student.eval()
                one = ItemCount.of(count.flatten()[0].as_subclass(Tensor))
                student.forward(**inputs, num_items_in_batch=one)
                student.train(training)
            self._reads_items = bool(one.reads)
        return self._reads_items

    def _processes(self) -> int:
        """Return by what ``Trainer.compute_loss`` multiplied the loss."""
        if not self.args.average_tokens_across_devices:
            return 1
        several: int = self.accelerator.num_processes
        return self.args.n_gpu if self.args.n_gpu > 1 else several

    # --- shares of an update ---------------------------------------------------------------------

    def part_counts(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return what each part of the loss averages over in a batch, by the part's name."""
        labels = self._count_labels(inputs)
        return {"rows": count_rows(inputs), "hard_loss": labels}

    def _count_labels(self, inputs: Inputs) -> Tensor:
        labels = labels_of(inputs, self.label_names)
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            return count_rows(inputs)
        shifts = self._loss_shifts_labels or is_causal(cast(nn.Module, self.model))
        if "shift_labels" in inputs:
            labels = inputs["shift_labels"]
        elif shifts and labels.dim() > 1:
            labels = labels[..., 1:]
        return (labels != no_label(cast(nn.Module, self.model))).sum()

    def loss_divisor(self, items: Items) -> float:
        """Return the number by which ``Trainer`` will divide the loss of a batch."""
        scaled = self.loss_is_scaled_for_ga
        if scaled is None:
            by_model = self.model_accepts_loss_kwargs and items is not None
            scaled = by_model or self.compute_loss_func is not None
        steps = self.current_gradient_accumulation_steps if self._shares else 1
        return 1.0 if scaled else float(steps)

    def in_update(
        self, terms: Mapping[str, Tensor], inputs: Inputs, items: Items
    ) -> dict[str, Tensor]:
        """Return terms, each the mean over a batch, so that they add up to the update's mean."""
        if not self._shares:
            return dict(terms)
        shares, divisor = self._shares.of(self.part_counts(inputs)), self.loss_divisor(items)
        return {
            name: term * (shares.get(name, shares["rows"]).to(term.device) * divisor)
            for name, term in terms.items()
        }

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Items]:
        """As ``Trainer.get_batch_samples``; also counts the units of each loss."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if samples:
            self.see_batch(samples[0])
        several = len(samples) * self.accelerator.num_processes > 1
        self._shares.start(
            [self.part_counts(batch) for batch in samples if several], self._everywhere
        )
        return samples, items

    def see_batch(self, inputs: Inputs) -> None:
        """Take a first look at an update's first batch, before anything is computed from it."""

    def _everywhere(self, count: Tensor) -> Tensor:
        """Average a count over the processes, as gradients are averaged."""
        if not self.args.average_tokens_across_devices:
            return count
        total: Tensor = self.accelerator.reduce(count.to(self.args.device).float(), "mean")
        return total

    # --- logs ------------------------------------------------------------------------------------

    def log_parts(self, parts: Mapping[str, Tensor], items: Items) -> None:
        """Add the parts of a batch's loss to the next log, divided as ``Trainer`` divides it."""
        divisor = self.loss_divisor(items)
        self._logged.add(
            {name: part.detach() / divisor for name, part in parts.items()}, self.state.global_step
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss to a training log."""
        if "loss" in logs:
            logs.update(self._logged.take(self.state.global_step, self._average))
        super().log(logs, start_time)

    def _average(self, value: Tensor) -> Tensor:
        mean: Tensor = self.accelerator.gather(value.float().reshape(1)).mean()
        return mean

    # --- around the training ---------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As ``Trainer.get_train_dataloader``; when a training begins, after `begin_training`."""
        if self.is_in_train:
            self._logged.clear()
            self._shares.start([], self._everywhere)
            self._reads_items = None
            self.begin_training()
        return super().get_train_dataloader()

    def begin_training(self) -> None:
        """Read ``args``; called once they are final, before the data and the optimizer are made."""

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Trial = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As ``Trainer.train``; the checkpoint may be a ``Path``."""
        if isinstance(resume_from_checkpoint, os.PathLike):
            resume_from_checkpoint = os.fspath(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)


def count_rows(inputs: Inputs) -> Tensor:
    """Return the rows of a batch."""
    tensors = [item for item in inputs.values() if isinstance(item, Tensor) and item.dim()]
    rows = torch.tensor(len(tensors[0]) if tensors else 1)
    return rows.to(tensors[0].device) if tensors else rows


def _told(function: Callable[..., Tensor], count: ItemCount) -> Callable[..., Tensor]:
    """Return a loss function that is told a number which remembers whether it was read."""

    def told(outputs: object, labels: object, num_items_in_batch: object = None) -> Tensor:
        return function(outputs, labels, num_items_in_batch=count)

    return told


def _check_setup(
    model: nn.Module | None, args: TrainingArguments | None, options: Mapping[str, object]
) -> None:
    _refuse_loaders(options.get("train_dataset"), options.get("eval_dataset"))
    if isinstance(options.get("train_dataset"), TensorDataset) and not options.get("data_collator"):
        raise DataError(
            "the rows of a TensorDataset have no names; give a data_collator that makes a dict of "
            "the model's inputs and labels, or a dataset of dicts"
        )
    smoothed = args is not None and args.label_smoothing_factor
    if model is not None and smoothed and not hasattr(model, "config"):
        raise ConfigError(
            f"label_smoothing_factor {args.label_smoothing_factor} needs a model with a config, "  # type: ignore[union-attr]
            f"and {type(model).__name__} has none; set it to 0"
        )


def _refuse_loaders(*datasets: object) -> None:
    for data in datasets:
        if isinstance(data, DataLoader):
            raise DataError(
                "a Trainer makes its own DataLoader; give loader.dataset as the dataset, "
                "per_device_train_batch_size in the arguments, and the collate_fn as data_collator"
            )
