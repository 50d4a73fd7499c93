"""Training and evaluation of any module on any loader, without a ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.inference import call_model, logits_in
from hfcompress.measure.evaluation import compute_metric
from hfcompress.tasks.loaders import Batch, Loader, named_batches
from hfcompress.training.hard_loss import Task, at_labels, hard_loss
from hfcompress.training.outputs import infer_task

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits, labels)``: a scalar, the mean over the batch."""
Metric = Callable[[Tensor, Tensor], float]
"""``metric(logits, labels)`` of all rows."""


class Runs(Protocol):
    """A model in another engine, such as a `QuantizedModel`."""

    source: nn.Module

    def __call__(self, **inputs: Tensor) -> object:
        """Return an output with ``logits``."""
        ...


def train_one_epoch(
    model: nn.Module,
    loader: Loader,
    optimizer: torch.optim.Optimizer,
    loss: LossFunction | None = None,
) -> float:
    """Train a module on each batch of a loader once, in place; return the mean loss of the rows.

    Args:
        model: in training mode afterwards, on the device that it is on.
        loader: as `hfcompress.tasks.loaders` reads it, with labels.
        optimizer: of the model's parameters.
        loss: by default the cross entropy of class numbers (-100 for none), of each token where the
            labels are [rows, tokens], or the mean squared error of labels with a fraction.

    Raises:
        DataError: an empty loader, batches without labels, or labels that do not fit the logits.
    """
    model.train()
    total, rows = 0.0, 0
    for batch in labelled(named_batches(loader, model), model):
        optimizer.zero_grad()
        value = batch_loss(model, batch, loss)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        count = len(batch["labels"])
        total, rows = total + float(value.detach()) * count, rows + count
    return total / rows


@torch.inference_mode()
def evaluate(model: nn.Module | Runs, loader: Loader, metric: str | Metric | None = None) -> float:
    """Return a metric of a model's predictions for all batches of a loader.

    Args:
        model: a module, in eval mode afterwards, or a quantized model.
        loader: as `hfcompress.tasks.loaders` reads it, with labels.
        metric: a name such as ``accuracy`` (the default for classes) or ``f1``; ``mse`` (the
            default for labels with a fraction); or a function of all logits and labels.

    Raises:
        DataError: an empty loader, batches without labels, or labels that do not fit the logits.
        ConfigError: a metric that returns something else than a number.
    """
    network = model if isinstance(model, nn.Module) else model.source
    if isinstance(model, nn.Module):
        model.eval()
    found: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in labelled(named_batches(loader, network), network):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        outputs = call_model(model, inputs) if isinstance(model, nn.Module) else model(**inputs)
        logits, wanted = logits_in(outputs).float().cpu(), batch["labels"].cpu()
        task = task_of(network, wanted)
        check_labels(logits, wanted, task)
        if task == "pixels":
            logits, wanted = at_labels(logits, wanted)
        found.append(logits.flatten(0, -2) if wanted.dim() == logits.dim() - 1 else logits)
        labels.append(wanted.flatten() if wanted.dim() == logits.dim() - 1 else wanted)
    return _score(torch.cat(found), torch.cat(labels), metric)


def batch_loss(model: nn.Module, batch: Batch, loss: LossFunction | None = None) -> Tensor:
    """Return a model's loss on one batch with labels; see `train_one_epoch`.

    Raises:
        DataError: labels that do not fit the logits.
    """
    return loss_of_logits(model, logits_in(call_model(model, batch)), batch["labels"], loss)


def loss_of_logits(
    model: nn.Module, logits: Tensor, labels: Tensor, loss: LossFunction | None
) -> Tensor:
    """Return the loss of logits; see `train_one_epoch`.

    Raises:
        DataError: labels that do not fit the logits.
    """
    if loss is not None:
        return loss(logits, labels)
    task = task_of(model, labels)
    check_labels(logits, labels, task)
    return hard_loss(logits, labels, task)


def labelled(batches: Iterator[Batch], model: nn.Module) -> Iterator[Batch]:
    """Yield batches with labels, on the model's device.

    Raises:
        DataError: a batch without labels.
    """
    for batch in batches:
        if "labels" not in batch:
            raise DataError(
                "a batch has no labels; give tuples whose last member is the labels, or dicts "
                "with 'labels'"
            )
        yield to_device(batch, model)


def to_device(batch: Batch, model: nn.Module) -> Batch:
    """Return the batch on the device of a model's parameters.

    Raises:
        ModelError: a model without parameters.
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ModelError(f"{type(model).__name__} has no parameters; give a model that learns")
    return {name: value.to(parameter.device) for name, value in batch.items()}


def check_labels(logits: Tensor, labels: Tensor, task: Task) -> None:
    """Refuse labels that a task cannot compare with logits.

    Raises:
        DataError: class numbers that are not integers or out of range, or another shape.
    """
    if task in ("regression", "multi_label", "ranking"):
        if labels.numel() != logits.numel():
            raise DataError(
                f"labels of type {labels.dtype} and shape {list(labels.shape)} do not fit logits "
                f"of shape {list(logits.shape)}; class labels must be integers: write "
                f"labels.long()"
            )
        return
    if task == "pixels":
        if logits.dim() != 4 or labels.dim() != 3 or len(labels) != len(logits):
            raise DataError(
                f"labels of shape {list(labels.shape)} do not fit logits of shape "
                f"{list(logits.shape)}; give a mask for each image, [rows, height, width]"
            )
        return
    if labels.shape not in (logits.shape[:1], logits.shape[:-1]):
        raise DataError(
            f"labels of shape {list(labels.shape)} do not fit logits of shape "
            f"{list(logits.shape)}; give one class for each row, or for each token"
        )
    low, high = (int(value) for value in torch.aminmax(labels))
    if high >= logits.shape[-1] or (low < 0 and low != -100):
        raise DataError(
            f"labels are from {low} to {high} and the model has {logits.shape[-1]} classes; "
            f"number them from 0 to {logits.shape[-1] - 1}, or write -100 for none"
        )


def task_of(model: nn.Module, labels: Tensor) -> Task:
    """Return what the logits of a model mean, by itself and a batch's labels."""
    label = labels[0]
    if label.is_floating_point() and label.dim() == 1 and not _zeros_and_ones(labels):
        return "regression"
    return infer_task(model, label)


def _zeros_and_ones(labels: Tensor) -> bool:
    return bool(((labels == 0) | (labels == 1)).all())


def _score(logits: Tensor, labels: Tensor, metric: str | Metric | None) -> float:
    if metric is None:
        metric = "mse" if labels.is_floating_point() else "accuracy"
    if metric == "mse":
        return float((logits.reshape(labels.shape) - labels).square().mean())
    if isinstance(metric, str):
        counted = labels != -100
        return compute_metric(metric, logits[counted].numpy(), labels[counted].numpy())
    return as_number(metric(logits, labels), "metric")


def as_number(value: object, name: str) -> float:
    """Return what a caller's function returned as a number.

    Raises:
        ConfigError: it is not a finite number.
    """
    if isinstance(value, (Tensor, np.ndarray)) and np.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, (int, float, np.number)) and np.isfinite(value):
        return float(value)
    raise ConfigError(
        f"{name} returned {value!r}, which is not a finite number; return one, such as an accuracy"
    )
