"""The loss on labels for a model that returns logits only (torch only)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from hfcompress.tasks.outputs import OutputKind

Task = OutputKind
"""What logits mean."""


def hard_loss(student_logits: Tensor, labels: Tensor, task: Task = "classification") -> Tensor:
    """Return the mean loss over the examples with a label; zero without any.

    Args:
        student_logits: shape by `Task`.
        labels: class numbers, (batch,) or (batch, tokens), -100 for "no label"; 0 or 1 for each
            label of multi_label; relevance from 0 to 1 for ranking; numbers for regression; (batch,
            2) first and last token for spans, where a number outside the tokens counts as no label;
            (batch, height, width) for pixels, where a number of no class does.
        task: what the logits mean.
    """
    if task in ("multi_label", "ranking"):
        if task == "ranking":
            labels = labels.reshape(student_logits.shape)
        return F.binary_cross_entropy_with_logits(student_logits, labels.to(student_logits.dtype))
    if task == "regression":
        return F.mse_loss(student_logits, labels.reshape(student_logits.shape).to(student_logits))
    if task == "spans":
        inside = (labels >= 0) & (labels < student_logits.shape[-1])
        labels = labels.masked_fill(~inside, -100)
    if task == "pixels":
        student_logits, labels = at_labels(student_logits, labels)
    classes = student_logits.shape[-1]
    logits, labels = student_logits.reshape(-1, classes), labels.reshape(-1)
    total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp_min(1)


def at_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of each labelled pixel, (batch, height, width, classes), bilinear between
    those of the model's grid, and the labels with -100 in the place of numbers of no class.

    Args:
        logits: (batch, classes, height, width).
        labels: (batch, height, width), of another size.
    """
    full = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    known = (labels >= 0) & (labels < logits.shape[1])
    return full.movedim(1, -1), labels.masked_fill(~known, -100)
