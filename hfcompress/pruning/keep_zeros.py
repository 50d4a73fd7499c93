"""Masks in a training loop of the caller's own: ``keep_zeros``, and hooks on its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from hfcompress.calibration.moments import weight_of
from hfcompress.errors import ConfigError, TargetError
from hfcompress.pruning.masks import count_zeros
from hfcompress.pruning.targets import literal, prunable
from hfcompress.pruning.training_config import PruningTrainingConfig
from hfcompress.pruning.training_masks import TrainingMasks


@contextmanager
def keep_zeros(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[TrainingMasks]:
    """Keep each weight that is zero now at zero, whatever the optimizer does::

        prune(model, PruningConfig(sparsity=0.9))
        with keep_zeros(model, optimizer):
            for epoch in range(3):
                train_one_epoch(model, loader, optimizer)

    Gradients of these weights are cleared before each step, and momentum and weight decay are
    undone after it.

    Args:
        model: pruned.
        optimizer: any of torch that trains the model's parameters.

    Raises:
        TargetError: no weight matrix of the model has zeros.
        ConfigError: the optimizer has none of the model's parameters.
    """
    masks = masks_of_zeros(model)
    if not trains(optimizer, model):
        raise ConfigError(
            f"the optimizer has no parameter of this {type(model).__name__}; make it from "
            f"model.parameters()"
        )
    hooks = [
        optimizer.register_step_pre_hook(lambda *_: masks.before_step()),
        optimizer.register_step_post_hook(lambda *_: masks.after_step()),
    ]
    try:
        yield masks
    finally:
        for hook in hooks:
            hook.remove()


def masks_of_zeros(model: nn.Module) -> TrainingMasks:
    """Return masks that keep each weight that is zero now, of any matrix, the head's too.

    Raises:
        TargetError: no weight matrix of the model has zeros.
    """
    pruned = list(with_zeros(model))
    if not pruned:
        raise TargetError(
            f"no weight matrix of {type(model).__name__} has zeros to keep; prune it first"
        )
    config = PruningTrainingConfig(method="keep_zeros", targets=tuple(map(literal, pruned)))
    masks = TrainingMasks(model, config, 1)
    masks.update(0)
    return masks


def with_zeros(model: nn.Module) -> Iterator[str]:
    """Yield the names of the matrices and tables that have zeros; a padding row is none."""
    for name, module in prunable(model).items():
        weight = weight_of(module).detach()
        padding = getattr(module, "padding_idx", None)
        if padding is not None:
            weight = torch.cat([weight[:padding], weight[padding + 1 :]])
        if count_zeros(weight):
            yield name


def trains(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Return whether an optimizer has parameters of a model."""
    held = {id(item) for group in optimizer.param_groups for item in group["params"]}
    return not held.isdisjoint(map(id, model.parameters()))


@contextmanager
def at_each_step(
    model: nn.Module, before: Callable[[], None], after: Callable[[], None]
) -> Iterator[None]:
    """Call functions around each step of any optimizer that trains a model, made inside or not."""

    def only(call: Callable[[], None]) -> Callable[..., None]:
        def hook(optimizer: torch.optim.Optimizer, *_: object) -> None:
            if trains(optimizer, model):
                call()

        return hook

    hooks = [
        register_optimizer_step_pre_hook(only(before)),
        register_optimizer_step_post_hook(only(after)),
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
