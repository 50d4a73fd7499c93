"""Importance of heads and neurons, one number for each unit; higher is worth more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration, require_labels, row_count, task_loss
from hfcompress.calibration.hooks import evaluating
from hfcompress.errors import CalibrationError
from hfcompress.models.matrices import weight_matrix
from hfcompress.models.sublayers import Sublayer


def magnitudes(model: nn.Module, part: Sublayer) -> Tensor:
    """Euclidean norm of all weights of each unit: its rows of the producers, its columns of the
    output projection. (The group norm of Fang et al. 2023, DepGraph, arXiv 2301.12900.)"""
    units = part.units(model)
    squares = weight_matrix(part.out(model)).float().square().sum(0).view(units, part.size).sum(1)
    for name in part.producers:
        rows = weight_matrix(model.get_submodule(name)).float().square().sum(1)
        squares = squares + rows.view(part.copies, units, part.size).sum((0, 2))
    return squares.sqrt()


def absolute_sums(model: nn.Module, part: Sublayer) -> Tensor:
    """Sum of the absolute weights of each unit, over the same weights as `magnitudes`."""
    units = part.units(model)
    sums = weight_matrix(part.out(model)).float().abs().sum(0).view(units, part.size).sum(1)
    for name in part.producers:
        rows = weight_matrix(model.get_submodule(name)).float().abs().sum(1)
        sums = sums + rows.view(part.copies, units, part.size).sum((0, 2))
    return sums


def mask_gradients(
    model: nn.Module, parts: Sequence[Sublayer], calibration: Calibration, *, squared: bool
) -> dict[str, Tensor]:
    """Mean over the rows of the loss's absolute or squared gradient by each unit's mask.

    Absolute is first-order Taylor, the sum of g w over a unit (Michel et al. 2019, arXiv
    1905.10650); squared is the diagonal of the Fisher matrix (Kwon et al. 2022, arXiv
    2204.09656).

    Args:
        model: run in eval mode, left as it was.
        parts: its sublayers.
        calibration: labelled rows.
        squared: Fisher instead of Taylor.

    Raises:
        CalibrationError: rows without labels, or NaN in a gradient.
    """
    sums = {part.name: torch.zeros(part.units(model)) for part in parts}
    rows = 0
    with evaluating(model), torch.enable_grad():
        for index in range(len(calibration.batches)):
            batch = calibration.batches[index]
            require_labels(batch)
            count = row_count(batch)
            masks = {
                part.name: torch.ones(count, part.units(model), requires_grad=True)
                for part in parts
                if part.units(model)
            }
            with masked(model, parts, masks):
                loss = task_loss(model, batch) * count  # the mean over rows, made their sum
            gradients = torch.autograd.grad(loss, list(masks.values()))
            for name, gradient in zip(masks, gradients, strict=True):
                if not bool(torch.isfinite(gradient).all()):
                    raise CalibrationError(f"the gradient of {name}'s mask is NaN or infinite")
                sums[name] += (gradient.square() if squared else gradient.abs()).sum(0)
            rows += count
    return {name: total / rows for name, total in sums.items()}


@contextmanager
def masked(
    model: nn.Module, parts: Sequence[Sublayer], masks: Mapping[str, Tensor]
) -> Iterator[None]:
    """Multiply the units of sublayers with masks inside (forward pre-hooks on the outputs).

    Args:
        model: any model of a known family.
        parts: its sublayers.
        masks: by sublayer; units, or rows x units for a mask of each row's own.
    """
    handles = []
    for part in parts:
        if part.name in masks:
            mask = masks[part.name].repeat_interleave(part.size, dim=-1)

            def multiply(
                _: nn.Module, args: tuple[Tensor, ...], mask: Tensor = mask
            ) -> tuple[Tensor, ...]:
                if mask.dim() == 2:  # attention in windows has several rows for each
                    mask = mask.repeat_interleave(len(args[0]) // len(mask), dim=0)[:, None]
                return (args[0] * mask, *args[1:])

            handles.append(part.out(model).register_forward_pre_hook(multiply))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
