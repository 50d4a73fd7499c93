"""The loss on labels for a model that returns logits only (torch only)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Task = Literal["classification", "multi_label", "regression", "tokens", "spans"]
"""What logits mean.

``classification``: (batch, classes), one class per example. ``multi_label``: (batch, labels), each
true or false. ``regression``: (batch, targets). ``tokens``: (batch, tokens, classes), one class per
token; of a language model the classes are its vocabulary. ``spans``: (batch, 2, tokens), scores of
the first and the last token of an answer.
"""


def hard_loss(student_logits: Tensor, labels: Tensor, task: Task = "classification") -> Tensor:
    """Return the mean loss over the examples with a label; zero without any.

    Args:
        student_logits: shape by `Task`.
        labels: class numbers, (batch,) or (batch, tokens), -100 for "no label"; 0 or 1 for each
            label of multi_label; numbers for regression; (batch, 2) first and last token for
            spans, where a number outside the tokens counts as no label.
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
