"""KL divergences of a student's logits from its teacher's (torch only).

Each is zero where both agree, has a gradient wherever they do not, and leaves out what a mask
does. The teacher's logits get no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hfcompress.errors import ConfigError, ModelError


def kl_divergence(
    student_logits: Tensor, teacher_logits: Tensor, T: float, mask: Tensor | None = None
) -> Tensor:
    """``T^2 KL(teacher || student)`` of the distributions at temperature T, mean over examples.

    The square keeps the gradient's size independent of the temperature.

    Args:
        student_logits: (..., classes).
        teacher_logits: as the student's.
        T: above 0.
        mask: (...), non-zero where an example or a token counts.

    Raises:
        ConfigError: a temperature that is not above 0.
        ModelError: logits of different shapes.
    """
    check_temperature(T)
    check_shapes(student_logits, teacher_logits)
    student = F.log_softmax(student_logits / T, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach() / T, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return masked_mean(divergence, mask) * T**2


def sigmoid_divergence(
    student_logits: Tensor, teacher_logits: Tensor, T: float, mask: Tensor | None = None
) -> Tensor:
    """``T^2 KL`` of a Bernoulli distribution for each label, mean over labels and examples.

    Args:
        student_logits: (..., labels); each label is right with the logit's sigmoid.
        teacher_logits: as the student's.
        T: above 0.
        mask: (...), non-zero where an example counts.

    Raises:
        ConfigError: a temperature that is not above 0.
        ModelError: logits of different shapes.
    """
    check_temperature(T)
    check_shapes(student_logits, teacher_logits)
    student, teacher = student_logits / T, teacher_logits.detach() / T
    right = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    wrong = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return masked_mean((right + wrong).mean(-1), mask) * T**2


def span_divergence(
    student_logits: Tensor, teacher_logits: Tensor, T: float, mask: Tensor | None = None
) -> Tensor:
    """`kl_divergence` of distributions over the tokens that are no padding.

    Args:
        student_logits: (batch, 2, tokens), where a span starts and ends.
        teacher_logits: as the student's.
        T: above 0.
        mask: (batch, tokens), non-zero where a token counts.

    Raises:
        ConfigError: a temperature that is not above 0.
        ModelError: logits of different shapes.
    """
    check_temperature(T)
    check_shapes(student_logits, teacher_logits)
    if mask is not None:
        padding = ~mask.bool().unsqueeze(-2)
        # A finite number, as 0 * infinity is not 0, that stays finite when it is divided by T.
        lowest = min(T, 1.0) * torch.finfo(student_logits.dtype).min / 4
        student_logits = student_logits.masked_fill(padding, lowest)
        teacher_logits = teacher_logits.masked_fill(padding, lowest)
    return kl_divergence(student_logits, teacher_logits, T)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the values where the mask is non-zero; zero where it is nowhere."""
    if mask is None:
        return values.mean()
    counted = mask.bool().expand(values.shape)
    return values.masked_fill(~counted, 0).sum() / counted.sum().clamp_min(1)


def check_temperature(T: float) -> None:
    """Refuse a temperature that is not above 0."""
    if not T > 0:
        raise ConfigError(f"the temperature must be above 0, not {T}")


def check_shapes(student: Tensor, teacher: Tensor) -> None:
    """Refuse logits of other classes."""
    if student.shape != teacher.shape:
        raise ModelError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape; "
            "give logits of the same classes"
        )
