"""Metrics of several labels for each example, each true or false; as scikit-learn has them."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hfcompress.measure.bootstrap import Units, Value, of_sums

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]


def label_counts(predicted: Truth, truth: Truth) -> Floats:
    """Return right, predicted and true labels of each row, [rows, labels, 3]."""
    return np.stack([predicted & truth, predicted, truth], axis=2).astype(np.float64)


def f1_of_labels(counts: Floats) -> Floats:
    """F1 of each label, from its sums [labels, 3]; 0 for a label that never occurs."""
    right, predicted, true = counts.reshape(-1, 3).T
    total = predicted + true
    scores: Floats = np.zeros_like(right)
    np.divide(2 * right, total, out=scores, where=total > 0)
    return scores


def _f1_micro(counts: Floats) -> float:
    return float(f1_of_labels(counts.reshape(-1, 3).sum(0))[0])


def _f1_macro(counts: Floats) -> float:
    return float(f1_of_labels(counts).mean())


class AveragePrecision:
    """Mean over the labels of the area under precision and recall (mAP), on any choice of rows.

    Labels that no row has are left out. Equal scores are one threshold.

    Args:
        scores: [rows, labels], higher where the label is more likely.
        truth: [rows, labels].
    """

    def __init__(self, scores: Floats, truth: Truth) -> None:
        self._order = np.argsort(-scores, axis=0, kind="stable")
        ranked = np.take_along_axis(scores, self._order, 0)
        last = np.ones_like(truth)
        last[:-1] = ranked[1:] != ranked[:-1]
        self._last, self._hits = last, np.take_along_axis(truth, self._order, 0)

    def __call__(self, units: Units) -> float:
        """Return the metric on some rows."""
        weights = np.bincount(units, minlength=len(self._order)).astype(np.float64)[self._order]
        seen, hits = weights.cumsum(0), (weights * self._hits).cumsum(0)
        areas = []
        for label in range(seen.shape[1]):
            if not hits[-1, label]:
                continue
            places = np.flatnonzero(self._last[:, label])
            found, total = hits[places, label], seen[places, label]
            precision = np.divide(found, total, out=np.zeros_like(found), where=total > 0)
            recall = np.diff(found, prepend=0.0) / hits[-1, label]
            areas.append(float((precision * recall).sum()))
        return float(np.mean(areas)) if areas else 0.0


_OF_COUNTS = MappingProxyType({"f1_micro": _f1_micro, "f1_macro": _f1_macro})
LABEL_SET_METRICS = ("f1_micro", "f1_macro", "mean_average_precision", "accuracy")
"""``accuracy``: the share of the rows with all labels right."""


def label_set_metric(name: str, logits: Floats, truth: Truth) -> Value:
    """Return one of `LABEL_SET_METRICS` as a function of rows.

    Args:
        name: which.
        logits: [rows, labels]; above 0 means that the label is predicted.
        truth: [rows, labels].
    """
    if name == "mean_average_precision":
        return AveragePrecision(logits, truth)
    predicted = logits > 0
    if name == "accuracy":
        whole = (predicted == truth).all(1).astype(np.float64)[:, None]
        return lambda units: float(whole[units].mean())
    counts = label_counts(predicted, truth)
    return of_sums(counts.reshape(len(counts), -1), _OF_COUNTS[name])
