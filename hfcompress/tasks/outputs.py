"""What the outputs of a model mean, and the scores that follow from them (numpy alone)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from hfcompress.models.outputs import KIND_OF_PROBLEM as KIND_OF_PROBLEM
from hfcompress.models.outputs import OutputKind as OutputKind
from hfcompress.models.outputs import output_kind as output_kind

Logits = NDArray[np.float32]


class LabelScore(TypedDict):
    """A label and its score, as ``transformers.pipeline`` gives them."""

    label: str
    score: float


def label_scores(logits: Logits, kind: OutputKind) -> Logits:
    """Return the scores of all labels: softmax, sigmoid, or the logits themselves.

    Args:
        logits: [..., labels].
        kind: what they mean.
    """
    if kind == "regression":
        return np.asarray(logits, np.float32)
    if kind in ("multi_label", "ranking"):
        # exp of a negative number only: exp(-logits) overflows where a logit is far below 0.
        small = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), np.float32)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


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


def word_scores(
    text: str, offsets: Sequence[tuple[int, int]], scores: Logits
) -> list[tuple[str, Logits]]:
    """Return the words of a text between spaces, each with the scores of its first token.

    Args:
        text: as it was encoded.
        offsets: first and last character of each token; equal for special tokens and padding.
        scores: [tokens, labels].
    """
    words, end = [], 0
    for word in text.split():
        start = text.index(word, end)
        end = start + len(word)
        tokens = [n for n, (first, last) in enumerate(offsets) if start < last <= end]
        if tokens:
            words.append((word, scores[tokens[0]]))
    return words


def masked_tokens(
    tokens: Sequence[str], scores: Logits, mask: str, count: int
) -> list[list[tuple[int, float]]]:
    """Return the likeliest tokens behind each mask of a text, with scores, the likeliest first.

    Args:
        tokens: of the text.
        scores: [tokens, vocabulary].
        mask: the mask token.
        count: how many.
    """
    found = []
    for place, token in enumerate(tokens):
        if token == mask:
            best = np.argsort(-scores[place], kind="stable")[:count]
            found.append([(int(number), float(scores[place][number])) for number in best])
    return found


def pixel_classes(logits: Logits, height: int, width: int) -> NDArray[np.int64]:
    """Return the class of each pixel of an image, bilinear between the logits of a model's grid.

    Args:
        logits: [classes, rows, columns] of one image.
        height, width: of the image.
    """
    full: Logits = np.asarray(logits, np.float32)
    for axis, wanted in ((1, height), (2, width)):
        size = full.shape[axis]
        places = np.clip((np.arange(wanted) + 0.5) * (size / wanted) - 0.5, 0, size - 1)
        weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size))).astype(np.float32)
        full = np.moveaxis(np.tensordot(weights, full, ([1], [axis])), 0, axis)
    classes: NDArray[np.int64] = full.argmax(0)
    return classes
