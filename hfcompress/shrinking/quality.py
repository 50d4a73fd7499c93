"""Divergence of a smaller model's predictions from the dense model's, and its metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.hooks import evaluating, predictions_in
from hfcompress.measure.environment import bf16_is_faster

ERROR_POWER = 2.0


@torch.no_grad()
def predictions(model: nn.Module, rows: Calibration) -> list[Tensor]:
    """The model's predictions for each batch: logits, hidden states, or all of its outputs.

    Under bf16 autocast where the processor is fast at it: what is compared is much coarser.
    """
    if bf16_is_faster(model):
        fast = torch.autocast("cpu", torch.bfloat16)
        with suppress(RuntimeError), fast:  # raised by an operator without bf16
            return _predictions(model, rows)
    return _predictions(model, rows)


def _predictions(model: nn.Module, rows: Calibration) -> list[Tensor]:
    with evaluating(model):
        return [
            predicted.float()
            for index in range(len(rows.batches))
            for predicted in predictions_in(rows.run(model, index))
        ]


def divergence(dense: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """KL(dense || other) of the predictions, the mean over all rows, in nats."""
    total, rows = 0.0, 0
    for p, q in zip(dense, other, strict=True):
        logp, logq = p.double().log_softmax(-1), q.double().log_softmax(-1)
        rowwise = (logp.exp() * (logp - logq)).sum(-1)
        total, rows = total + float(rowwise.sum()), rows + rowwise.numel()
    return total / max(rows, 1)


def interpolated(
    errors: Mapping[int, float], widths: Sequence[int], power: float = ERROR_POWER
) -> dict[int, float]:
    """The errors at all allowed widths, never rising with width.

    Interpolated are roots: a divergence is quadratic in a small change.

    Args:
        errors: by measured width.
        widths: those wanted.
        power: what a root is raised to: 2 gives the divergence itself.
    """
    known = sorted(errors)
    roots = np.sqrt(np.maximum([errors[width] for width in known], 0.0))
    falling = np.maximum.accumulate(roots[::-1])[::-1]
    values = np.interp(widths, known, falling) ** power
    return {width: float(value) for width, value in zip(widths, values, strict=True)}


def metric_root(fisher: Tensor, exponent: float) -> Tensor | None:
    """R with R'R the Fisher matrix with its eigenvalues (scaled to a mean of 1, and 0.01 added)
    raised to an exponent; None for exponent 0."""
    if exponent == 0:
        return None
    values, vectors = torch.linalg.eigh(fisher.double())
    values = values.clamp_min(0) / values.mean().clamp_min(torch.finfo(values.dtype).tiny)
    root: Tensor = (vectors * (values + 0.01).pow(exponent / 2)).T.float()
    return root
