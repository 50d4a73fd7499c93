"""Accuracy of each class: compression hides its damage in the rare ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hfcompress.errors import DataError
from hfcompress.measure.evaluation import predicted_classes


def class_accuracy(
    predictions: npt.ArrayLike,
    labels: npt.ArrayLike,
    dense: npt.ArrayLike,
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Of each class that occurs: its examples, and the share of them that each model gets right.

    Args:
        predictions: logits of n x classes, or n class numbers.
        labels: n class numbers.
        dense: the dense model's predictions of the same examples.
        names: of the classes, by number.

    Returns:
        One ``{"name", "n", "value", "dense"}`` a class, in the order of their numbers; value and
        dense are recalls, from 0 to 1.

    Raises:
        DataError: predictions of another length, or a label without a name.
    """
    own, other, truth = (predicted_classes(part) for part in (predictions, dense, labels))
    if not len(own) == len(other) == len(truth):
        raise DataError(f"there are {len(own)} predictions for {len(truth)} examples")
    if truth.max() >= len(names):
        raise DataError(f"label {truth.max()} has no name; there are {len(names)}")
    counts = np.bincount(truth, minlength=len(names))
    hits = np.bincount(truth[own == truth], minlength=len(names))
    dense_hits = np.bincount(truth[other == truth], minlength=len(names))
    return [
        {
            "name": str(names[int(index)]),
            "n": int(counts[index]),
            "value": float(hits[index] / counts[index]),
            "dense": float(dense_hits[index] / counts[index]),
        }
        for index in np.flatnonzero(counts).tolist()
    ]
