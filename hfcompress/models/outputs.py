"""What the outputs of a model mean, as its config says it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

OutputKind = Literal[
    "classification",
    "multi_label",
    "regression",
    "tokens",
    "masked",
    "spans",
    "pixels",
    "similarity",
    "retrieval",
    "ranking",
]
"""What logits mean.

``classification``: (batch, classes), one class per example. ``multi_label``: (batch, labels), each
true or false. ``regression``: (batch, targets), the logits are the numbers asked for. ``tokens``:
(batch, tokens, classes), one class per token; of a causal language model the classes are its
vocabulary. ``masked``: (batch, tokens, vocabulary), the token that is behind a mask.
``spans``: (batch, 2, tokens), scores of the first and the last token of an answer. ``pixels``:
(batch, classes, height, width), one class per pixel, often on a coarser grid. ``similarity`` and
``retrieval``: (batch, size), a vector for each text, compared with scored pairs, or to find a
query's passages. ``ranking``: (batch, 1), the log-odds that a passage answers its query.
"""

KIND_OF_PROBLEM: Mapping[str, OutputKind] = MappingProxyType(
    {
        "single_label_classification": "classification",
        "multi_label_classification": "multi_label",
        "regression": "regression",
    }
)
PROBLEM_OF_KIND: Mapping[str, str] = MappingProxyType(
    {kind: problem for problem, kind in KIND_OF_PROBLEM.items()}
)


KIND_NAMES: Mapping[OutputKind, str] = MappingProxyType(
    {
        "classification": "one label for each example",
        "multi_label": "several labels for an example",
        "regression": "a number for each example",
        "tokens": "a label for each token",
        "masked": "the token behind a mask",
        "spans": "the first and the last token of an answer",
        "pixels": "a class for each pixel",
        "similarity": "a vector for each text",
        "retrieval": "a vector for each text",
        "ranking": "one score for a query and a passage",
    }
)
"""What a model gives, in words."""


def output_kind(problem_type: str | None, num_labels: int) -> OutputKind:
    """Return what a classifier's logits mean, as ``transformers.pipeline`` reads them.

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


VECTORS: tuple[OutputKind, ...] = ("similarity", "retrieval")
"""Kinds whose outputs are vectors: there are no labels and no head."""

BY_TOKEN: tuple[OutputKind, ...] = ("tokens", "masked", "spans")
"""Kinds whose outputs are of tokens, so that an example has as many as it has tokens."""

BY_PLACE: tuple[OutputKind, ...] = (*BY_TOKEN, "pixels")
"""Kinds with outputs for each token or pixel of an example."""


def ignored_label(config: object) -> int:
    """Return the label that a model's own loss leaves out: that of segmentation models is in their
    config, others have -100."""
    for name in ("semantic_loss_ignore_index", "loss_ignore_index"):
        if isinstance(found := getattr(config, name, None), int):
            return found
    return -100
