"""Distillation losses on logits: student and teacher tensors in, a scalar out (torch only).

Each loss is zero where student and teacher agree, has a gradient where they differ, and ignores
padding. The teacher's tensors get no gradient. Losses on layers are in ``layer_losses.py``.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfcompress.distillation.vector_losses import cosine_distance
from hfcompress.errors import ConfigError, ModelError
from hfcompress.training.hard_loss import Task, hard_loss

DEFAULT_TEMPERATURE = 2.0


class DistillationTerms(NamedTuple):
    """A distillation loss and its parts.

    Attributes:
        total: ``alpha * soft + (1 - alpha) * hard``.
        soft: distance from the teacher.
        hard: distance from the labels; zero without labels.
    """

    total: Tensor
    soft: Tensor
    hard: Tensor


class DistillationLoss(nn.Module):
    """`distillation_loss` as a module, for a training loop or a subclass that changes a part.

    Args:
        temperature: divides the logits of both; above 0, by default 2. May be set between calls.
        alpha: weight of the soft part, in [0, 1]. May be set between calls.
        task: what the logits mean.
        T: alias of ``temperature``, also as an attribute.

    Raises:
        ConfigError: a value out of range, an unknown task, or both ``temperature`` and ``T``.
    """

    def __init__(
        self,
        temperature: float | None = None,
        alpha: float = 0.5,
        task: Task = "classification",
        *,
        T: float | None = None,
    ) -> None:
        super().__init__()
        self.temperature = _one_temperature(temperature, T)
        self.alpha, self.task = alpha, task
        _check(self.temperature, alpha)
        if task not in get_args(Task):
            raise ConfigError(f"task must be one of {', '.join(get_args(Task))}, not {task!r}")

    @property
    def T(self) -> float:
        """Alias of ``temperature``."""
        return self.temperature

    @T.setter
    def T(self, value: float) -> None:
        self.temperature = value

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> DistillationTerms:
        """Return total, soft and hard loss of a batch; arguments as `soft_loss`, `hard_loss`."""
        _check(self.temperature, self.alpha)
        soft = self.soft(student_logits, teacher_logits, mask)
        if labels is None:
            return DistillationTerms(soft, soft, torch.zeros_like(soft))
        hard = self.hard(student_logits, labels)
        return DistillationTerms(self.alpha * soft + (1 - self.alpha) * hard, soft, hard)

    def soft(
        self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return the distance from the teacher."""
        return soft_loss(student_logits, teacher_logits, self.temperature, self.task, mask)

    def hard(self, student_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the distance from the labels."""
        return hard_loss(student_logits, labels, self.task)

    def extra_repr(self) -> str:
        """Return the options, for ``print``."""
        return f"temperature={self.temperature}, alpha={self.alpha}, task={self.task!r}"


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    temperature: float | None = None,
    alpha: float = 0.5,
    task: Task = "classification",
    mask: Tensor | None = None,
    *,
    T: float | None = None,
) -> DistillationTerms:
    """Return the loss on the teacher's soft targets and the labels (Hinton et al., 1503.02531).

    Args:
        student_logits: shape by `Task`.
        teacher_logits: as the student's.
        labels: as in `hard_loss`. With None the total is the soft part alone.
        temperature: divides the logits of both; above 0, by default 2.
        alpha: weight of the soft part, in [0, 1].
        task: what the logits mean.
        mask: as in `soft_loss`.
        T: alias of ``temperature``.

    Raises:
        ConfigError: a temperature or alpha out of range, or both ``temperature`` and ``T``.
        ModelError: logits of different shapes.
    """
    terms: DistillationTerms = DistillationLoss(temperature, alpha, task, T=T)(
        student_logits, teacher_logits, labels, mask
    )
    return terms


def soft_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    task: Task = "classification",
    mask: Tensor | None = None,
) -> Tensor:
    """Return the distance from the teacher: a KL divergence, for regression the MSE, for vectors
    1 - cosine.

    Args:
        student_logits: shape by `Task`.
        teacher_logits: as the student's.
        temperature: divides the logits of both; not used for regression.
        task: what the logits mean.
        mask: non-zero where something counts: (batch,) for classification, multi_label and
            regression; (batch, tokens) for tokens, and for spans, whose distribution is over the
            tokens; (batch, height, width) for pixels, of any size: each logit has the nearest
            pixel's. None counts all.

    Raises:
        ConfigError: a temperature that is not above 0.
        ModelError: logits of different shapes.
    """
    if task == "spans":
        return span_divergence(student_logits, teacher_logits, temperature, mask)
    if task in ("similarity", "retrieval"):
        return cosine_distance(student_logits, teacher_logits)
    if task in ("multi_label", "ranking"):
        return sigmoid_divergence(student_logits, teacher_logits, temperature, mask)
    if task == "regression":
        return logits_mse(student_logits, teacher_logits, task, mask)
    if task == "pixels":
        mask = _on_grid(mask, student_logits)
        student_logits, teacher_logits = (
            logits.movedim(1, -1) for logits in (student_logits, teacher_logits)
        )
    return kl_divergence(student_logits, teacher_logits, temperature, mask)


def logits_mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    task: Task = "classification",
    mask: Tensor | None = None,
) -> Tensor:
    """Return the mean squared difference of the logits (Ba and Caruana, 1312.6184).

    Args:
        student_logits: shape by `Task`.
        teacher_logits: as the student's.
        task: what the logits mean.
        mask: as in `soft_loss`.
    """
    check_shapes(student_logits, teacher_logits)
    difference = (student_logits - teacher_logits.detach()).square()
    if task == "spans":
        return masked_mean(difference, None if mask is None else mask.unsqueeze(-2))
    if task == "pixels":
        return masked_mean(difference.mean(1), _on_grid(mask, student_logits))
    return masked_mean(difference.mean(-1), mask)


def kl_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Return ``T^2 KL(teacher || student)`` at temperature T, mean over examples.

    The factor T^2 keeps the size of the gradient independent of the temperature.

    Args:
        student_logits: (..., classes).
        teacher_logits: as the student's.
        temperature: above 0.
        mask: (...), non-zero where an example or a token counts.

    Raises:
        ConfigError: a temperature that is not above 0.
        ModelError: logits of different shapes.
    """
    check_temperature(temperature)
    check_shapes(student_logits, teacher_logits)
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return masked_mean(divergence, mask) * temperature**2


def sigmoid_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Return ``T^2 KL`` of one Bernoulli distribution per label, mean over labels and examples.

    Args:
        student_logits: (..., labels); the sigmoid of a logit is the label's probability.
        teacher_logits: as the student's.
        temperature: above 0.
        mask: (...), non-zero where an example counts.

    Raises:
        ConfigError: a temperature that is not above 0.
        ModelError: logits of different shapes.
    """
    check_temperature(temperature)
    check_shapes(student_logits, teacher_logits)
    student, teacher = student_logits / temperature, teacher_logits.detach() / temperature
    right = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    wrong = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return masked_mean((right + wrong).mean(-1), mask) * temperature**2


def span_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Return `kl_divergence` of the distributions over the tokens without padding.

    Args:
        student_logits: (batch, 2, tokens), scores of the first and the last token.
        teacher_logits: as the student's.
        temperature: above 0.
        mask: (batch, tokens), non-zero where a token counts.

    Raises:
        ConfigError: a temperature that is not above 0.
        ModelError: logits of different shapes.
    """
    check_temperature(temperature)
    check_shapes(student_logits, teacher_logits)
    if mask is not None:
        padding = ~mask.bool().unsqueeze(-2)
        # Finite, because 0 * inf is NaN, and small enough to stay finite divided by T.
        lowest = min(temperature, 1.0) * torch.finfo(student_logits.dtype).min / 4
        student_logits = student_logits.masked_fill(padding, lowest)
        teacher_logits = teacher_logits.masked_fill(padding, lowest)
    return kl_divergence(student_logits, teacher_logits, temperature)


def _on_grid(mask: Tensor | None, logits: Tensor) -> Tensor | None:
    """Return a mask of pixels on the grid of logits, (batch, height, width)."""
    if mask is None:
        return None
    size = (logits.shape[-2], logits.shape[-1])
    return F.interpolate(mask[:, None].float(), size=size, mode="nearest")[:, 0]


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of the values where the mask is non-zero; zero for an empty mask."""
    if mask is None:
        return values.mean()
    counted = mask.bool().expand(values.shape)
    return values.masked_fill(~counted, 0).sum() / counted.sum().clamp_min(1)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not above 0."""
    if not temperature > 0:
        raise ConfigError(f"the temperature must be above 0, not {temperature}")


def check_shapes(student: Tensor, teacher: Tensor) -> None:
    """Refuse logits of different shapes."""
    if student.shape != teacher.shape:
        raise ModelError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape; "
            "give logits for the same classes"
        )


def _one_temperature(temperature: float | None, alias: float | None) -> float:
    if temperature is not None and alias is not None:
        raise ConfigError(
            f"temperature={temperature} and T={alias} are the same option; give temperature only"
        )
    given = alias if temperature is None else temperature
    return DEFAULT_TEMPERATURE if given is None else given


def _check(temperature: float, alpha: float) -> None:
    check_temperature(temperature)
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must lie between 0 and 1, not {alpha}")
