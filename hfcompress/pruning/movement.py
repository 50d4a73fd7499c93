"""Movement scores: importance of a weight from where training pushes it (Sanh et al., 2005.07683).

The mask ``M`` depends on scores ``S``, the model computes with ``W * M``, and the gradient passes
``M`` straight through: ``dL/dS = dL/d(W * M) * W``. A weight that is pushed away from zero gains,
one that is pushed towards zero loses. Tensors in, tensors out; torch only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def movement_update_(scores: Tensor, weight: Tensor, gradient: Tensor) -> None:
    """Add ``-weight * gradient`` to the scores, in place (equation 3 of the paper).

    Args:
        scores: floats of the weight's shape.
        weight: the weight before masking, pruned entries included.
        gradient: the loss's gradient with respect to the masked weight.
    """
    scores.addcmul_(weight.to(scores.dtype), gradient.to(scores.dtype), value=-1)


def soft_movement_update_(
    scores: Tensor, weight: Tensor, gradient: Tensor, *, learning_rate: float, pull: float
) -> None:
    """One step of gradient descent on the scores, with a pull towards more zeros, in place.

    The gradient ``weight * gradient`` is scaled to a root mean square of 1 over the tensor, so
    that learning rate and pull mean the same in every layer and with every loss; the pull is the
    gradient of ``sum(sigmoid(scores))``, the paper's regulariser.

    Args:
        scores: floats of the weight's shape, in logits.
        weight: the weight before masking, pruned entries included.
        gradient: the loss's gradient with respect to the masked weight.
        learning_rate: step size in logits.
        pull: weight of the regulariser beside a gradient of root mean square 1.
    """
    step = weight.to(scores.dtype) * gradient.to(scores.dtype)
    step /= step.square().mean().sqrt().clamp_min(torch.finfo(step.dtype).tiny)
    kept = torch.sigmoid(scores)
    step += pull * kept * (1 - kept)
    scores.sub_(step, alpha=learning_rate)


def soft_movement_mask(scores: Tensor, threshold: float) -> Tensor:
    """Keep (True) where ``sigmoid(scores) > threshold``, for a threshold in [0, 1)."""
    if threshold <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores > math.log(threshold / (1 - threshold))
