"""What the logits of a classifier mean, and the scores that follow from them (numpy alone)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
OutputKind = Literal["classification", "multi_label", "regression"]
"""``classification``: one class for each example. ``multi_label``: each label is true or false.
``regression``: the logits are the numbers asked for."""

KIND_OF_PROBLEM: dict[str, OutputKind] = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


class LabelScore(TypedDict):
    """A label and its score, as ``transformers.pipeline`` gives them."""

    label: str
    score: float


def output_kind(problem_type: str | None, num_labels: int) -> OutputKind:
    """Return what a head's logits mean, as ``transformers.pipeline`` reads them.

    Args:
        problem_type: of the model's config; None where it does not say.
        num_labels: number of logits. A single logit whose problem type is not said is the
            log-odds of its label.

    Raises:
        ValueError: an unknown problem type.
    """
    if problem_type is not None:
        if problem_type not in KIND_OF_PROBLEM:
            raise ValueError(
                f"unknown problem_type {problem_type!r}; use one of {', '.join(KIND_OF_PROBLEM)}"
            )
        return KIND_OF_PROBLEM[problem_type]
    return "multi_label" if num_labels == 1 else "classification"


def label_scores(logits: Logits, kind: OutputKind) -> Logits:
    """Return the scores of all labels: softmax, sigmoid, or the logits themselves.

    Args:
        logits: [examples, labels].
        kind: what they mean.
    """
    if kind == "regression":
        return np.asarray(logits, np.float32)
    if kind == "multi_label":
        # exp of a negative number only: exp(-logits) overflows where a logit is far below 0.
        small = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), np.float32)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)


def ranked_labels(
    scores: Logits, labels: Sequence[str], top_k: int | None = None
) -> list[LabelScore]:
    """Return the labels of one example with the highest scores, the highest first.

    Args:
        scores: [labels].
        labels: names by id.
        top_k: how many; None takes all.
    """
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [LabelScore(label=labels[i], score=float(scores[i])) for i in order.tolist()]
