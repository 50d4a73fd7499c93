"""Distillation losses on logits: student and teacher tensors in, a scalar out (torch only).

Each is zero where student and teacher agree, has a gradient wherever they do not, and leaves
padding out. The teacher's tensors get no gradient. Losses on layers are in ``state_losses.py``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfcompress.errors import ConfigError, ModelError

Task = Literal["classification", "multi_label", "regression", "tokens", "spans"]
"""What logits mean.

``classification``: (batch, classes), one class is right. ``multi_label``: (batch, labels), each
is right or wrong. ``regression``: (batch, targets). ``tokens``: (batch, tokens, classes), a class
for each token. ``spans``: (batch, 2, tokens), where an answer starts and where it ends.
"""


class DistillationTerms(NamedTuple):
    """A distillation loss and its parts.

    Attributes:
        total: ``alpha * soft + (1 - alpha) * hard``.
        soft: distance from the teacher.
        hard: distance from the labels; zero where there are none.
    """

    total: Tensor
    soft: Tensor
    hard: Tensor


class DistillationLoss(nn.Module):
    """`distillation_loss` as a module, for a training loop or a subclass that changes a part.

    Args:
        T: softens both distributions; above 0. It may be set between calls.
        alpha: weight of the soft part, in [0, 1]. It may be set between calls.
        task: what the logits mean.

    Raises:
        ConfigError: a value out of range, or an unknown task.
    """

    def __init__(self, T: float = 2.0, alpha: float = 0.5, task: Task = "classification") -> None:
        super().__init__()
        _check(T, alpha)
        if task not in get_args(Task):
            raise ConfigError(f"task must be one of {', '.join(get_args(Task))}, not {task!r}")
        self.T, self.alpha, self.task = T, alpha, task

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> DistillationTerms:
        """Total, soft and hard loss of a batch; arguments as `soft_loss` and `hard_loss`."""
        _check(self.T, self.alpha)
        soft = self.soft(student_logits, teacher_logits, mask)
        if labels is None:
            return DistillationTerms(soft, soft, torch.zeros_like(soft))
        hard = self.hard(student_logits, labels)
        return DistillationTerms(self.alpha * soft + (1 - self.alpha) * hard, soft, hard)

    def soft(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Distance from the teacher."""
        return soft_loss(student_logits, teacher_logits, self.T, self.task, mask)

    def hard(self, student_logits: Tensor, labels: Tensor) -> Tensor:
        """Distance from the labels."""
        return hard_loss(student_logits, labels, self.task)

    def extra_repr(self) -> str:
        """The options, for ``print``."""
        return f"T={self.T}, alpha={self.alpha}, task={self.task!r}"


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    T: float = 2.0,
    alpha: float = 0.5,
    task: Task = "classification",
    mask: Tensor | None = None,
) -> DistillationTerms:
    """Soft targets of the teacher beside the labels (Hinton et al., 1503.02531).

    Args:
        student_logits: of the shape that `Task` says.
        teacher_logits: as the student's.
        labels: as in `hard_loss`. None leaves the hard part out, and the soft part then counts
            in full.
        T: temperature that softens both distributions; above 0.
        alpha: weight of the soft part, in [0, 1].
        task: what the logits mean.
        mask: as in `soft_loss`.

    Raises:
        ConfigError: a temperature or alpha out of range.
        ModelError: logits of different shapes.
    """
    terms: DistillationTerms = DistillationLoss(T, alpha, task)(
        student_logits, teacher_logits, labels, mask
    )
    return terms


def soft_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    T: float,
    task: Task = "classification",
    mask: Tensor | None = None,
) -> Tensor:
    """Distance from the teacher: a KL divergence, or squared difference for regression.

    Args:
        student_logits: of the shape that `Task` says.
        teacher_logits: as the student's.
        T: temperature; regression has none.
        task: what the logits mean.
        mask: non-zero where something counts. (batch,) rows for classification, multi_label and
            regression; (batch, tokens) for tokens, and for spans, whose distribution is over the
            tokens. None counts all.

    Raises:
        ConfigError: a temperature that is not above 0.
        ModelError: logits of different shapes.
    """
    if task == "spans":
        return span_divergence(student_logits, teacher_logits, T, mask)
    if task == "multi_label":
        return sigmoid_divergence(student_logits, teacher_logits, T, mask)
    if task == "regression":
        return logits_mse(student_logits, teacher_logits, task, mask)
    return kl_divergence(student_logits, teacher_logits, T, mask)


def logits_mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    task: Task = "classification",
    mask: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of the logits (Ba and Caruana, 1312.6184).

    Args:
        student_logits: of the shape that `Task` says.
        teacher_logits: as the student's.
        task: what the logits mean.
        mask: as in `soft_loss`.
    """
    check_shapes(student_logits, teacher_logits)
    difference = (student_logits - teacher_logits.detach()).square()
    if task == "spans":
        return masked_mean(difference, None if mask is None else mask.unsqueeze(-2))
    return masked_mean(difference.mean(-1), mask)


def hard_loss(student_logits: Tensor, labels: Tensor, task: Task = "classification") -> Tensor:
    """Distance from the labels, mean over the examples with a label; zero when there is none.

    Args:
        student_logits: of the shape that `Task` says.
        labels: class numbers, (batch,) or (batch, tokens), -100 where there is no label; 0 or 1
            for each label of multi_label; numbers for regression; (batch, 2) first and last
            token for spans, where a number that is no token counts as no label.
        task: what the logits mean.
    """
    if task == "multi_label":
        return F.binary_cross_entropy_with_logits(student_logits, labels.to(student_logits.dtype))
    if task == "regression":
        return F.mse_loss(student_logits, labels.reshape(student_logits.shape).to(student_logits))
    if task == "spans":
        inside = (labels >= 0) & (labels < student_logits.shape[-1])
        labels = labels.masked_fill(~inside, -100)
    classes = student_logits.shape[-1]
    logits, labels = student_logits.reshape(-1, classes), labels.reshape(-1)
    total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp_min(1)


def _check(T: float, alpha: float) -> None:
    check_temperature(T)
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must lie between 0 and 1, not {alpha}")


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
