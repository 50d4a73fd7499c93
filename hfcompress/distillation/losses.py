"""Distillation losses: student and teacher tensors in, a scalar out (torch only).

Each is zero where student and teacher agree, has a gradient wherever they do not, and leaves
padding out. The teacher's tensors get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

HiddenDistance = Literal["mse", "normalized_mse", "cosine"]
Projection = Callable[[Tensor], Tensor]


class DistillationLoss(NamedTuple):
    """A distillation loss and its parts.

    Attributes:
        total: ``alpha * soft + (1 - alpha) * hard``.
        soft: KL divergence from the teacher at temperature T, times T squared.
        hard: cross-entropy with the labels; zero where there are none.
    """

    total: Tensor
    soft: Tensor
    hard: Tensor


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    temperature: float = 2.0,
    alpha: float = 0.5,
) -> DistillationLoss:
    """Soft targets of the teacher beside the labels (Hinton et al., 1503.02531).

    Args:
        student_logits: (..., classes).
        teacher_logits: as the student's.
        labels: class numbers of shape (...); -100 marks an example without a label. None leaves
            the hard part out, and the soft part then counts in full.
        temperature: softens both distributions; above 0.
        alpha: weight of the soft part, in [0, 1].

    Raises:
        ValueError: a temperature or alpha out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    soft = kl_divergence(student_logits, teacher_logits, temperature)
    if labels is None:
        return DistillationLoss(soft, soft, torch.zeros_like(soft))
    hard = hard_loss(student_logits, labels)
    return DistillationLoss(alpha * soft + (1 - alpha) * hard, soft, hard)


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(teacher || student)`` of the distributions at temperature T, mean over examples.

    The square keeps the gradient's size independent of the temperature.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    if temperature <= 0:
        raise ValueError(f"the temperature must be above 0, not {temperature}")
    _same_shape(student_logits, teacher_logits)
    classes = student_logits.shape[-1]
    student = F.log_softmax(student_logits.reshape(-1, classes) / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach().reshape(-1, classes) / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def hard_loss(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the examples with a label; zero when no example has one."""
    classes = student_logits.shape[-1]
    logits, labels = student_logits.reshape(-1, classes), labels.reshape(-1)
    total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp_min(1)


def logits_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared difference of the logits (Ba and Caruana, 1312.6184)."""
    _same_shape(student_logits, teacher_logits)
    return F.mse_loss(student_logits, teacher_logits.detach())


def hidden_state_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    projection: Projection | None = None,
    distance: HiddenDistance = "mse",
) -> Tensor:
    """Distance of hidden states, mean over the tokens that are no padding.

    ``mse`` is the mean over features too (TinyBERT, 1909.10351); ``normalized_mse`` is that,
    divided by the mean square of the teacher's states, so that layers of different size weigh the
    same; ``cosine`` is 1 minus the cosine of each token (DistilBERT, 1910.01108).

    Args:
        student: (batch, tokens, student width).
        teacher: (batch, tokens, teacher width).
        mask: (batch, tokens), non-zero where a token counts; None counts all.
        projection: from the student's width to the teacher's, where they differ.
        distance: which.

    Raises:
        ValueError: widths that differ without a projection, or an unknown distance.
    """
    if distance not in ("mse", "normalized_mse", "cosine"):
        raise ValueError(f"distance must be mse, normalized_mse or cosine, not {distance!r}")
    student = student if projection is None else projection(student)
    _same_shape(student, teacher)
    teacher = teacher.detach()
    if mask is not None:
        student, teacher = student[mask.bool()], teacher[mask.bool()]
    if student.numel() == 0:  # a batch of padding only: no distance, and still a gradient
        return student.sum()
    if distance == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    difference = F.mse_loss(student, teacher)
    if distance == "mse":
        return difference
    return difference / teacher.square().mean().clamp_min(torch.finfo(teacher.dtype).tiny)


def _same_shape(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape; "
            "give a projection, or a teacher with the same classes"
        )
