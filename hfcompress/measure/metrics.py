"""Accuracy, F1 and Matthews correlation as ``evaluate`` metrics that need no network.

All four are functions of the confusion matrix C, where ``C[i, j]`` counts the examples of class i
that were predicted as class j. Where a formula divides by zero the metric is 0, as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

from hfcompress.errors import DataError, SourceError, first_line

Classes = npt.NDArray[np.int64]
Confusion = npt.NDArray[np.float64]


def confusion_matrix(predictions: Classes, references: Classes) -> Confusion:
    """Counts of classes x classes: rows are the references, columns the predictions."""
    size = int(max(predictions.max(), references.max())) + 1
    counts = np.bincount(references * size + predictions, minlength=size * size)
    return counts.reshape(size, size).astype(np.float64)


def accuracy(confusion: Confusion) -> float:
    """The fraction of examples on the diagonal."""
    return float(np.trace(confusion) / confusion.sum())


def f1(confusion: Confusion) -> float:
    """F1 of class 1 among two classes: the harmonic mean of precision and recall.

    Raises:
        DataError: more than two classes.
    """
    if len(confusion) > 2:
        raise DataError(f"f1 needs two classes and there are {len(confusion)}; write f1_macro")
    return float(_f1_per_class(confusion)[1]) if len(confusion) == 2 else 0.0


def f1_macro(confusion: Confusion) -> float:
    """The plain mean of each class's F1, over classes that occur or are predicted."""
    present = confusion.sum(0) + confusion.sum(1) > 0
    return float(_f1_per_class(confusion)[present].mean())


def _f1_per_class(confusion: Confusion) -> Confusion:
    hits, total = np.diag(confusion), confusion.sum(0) + confusion.sum(1)
    scores: Confusion = np.zeros_like(total)
    np.divide(2 * hits, total, out=scores, where=total > 0)
    return scores


def matthews_correlation(confusion: Confusion) -> float:
    """Correlation of prediction and truth, for any number of classes (Gorodkin 2004)."""
    n, hits = confusion.sum(), np.trace(confusion)
    predicted, true = confusion.sum(0), confusion.sum(1)
    spread = (n * n - predicted @ predicted) * (n * n - true @ true)
    return float((hits * n - predicted @ true) / np.sqrt(spread)) if spread > 0 else 0.0


CONFUSION_METRICS: Mapping[str, Callable[[Confusion], float]] = MappingProxyType(
    {
        "accuracy": accuracy,
        "f1": f1,
        "f1_macro": f1_macro,
        "matthews_correlation": matthews_correlation,
    }
)


class ConfusionMetric(evaluate.Metric):  # type: ignore[misc]
    """An ``evaluate`` metric over class numbers; nothing of it is fetched or kept on disk.

    Args:
        name: one of `CONFUSION_METRICS`.
        options: as for ``evaluate.Metric``.
    """

    def __init__(self, name: str, **options: Any) -> None:
        self._metric = name
        super().__init__(config_name=name, keep_in_memory=True, **options)

    def _info(self) -> evaluate.MetricInfo:
        integer = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=str(CONFUSION_METRICS[self._metric].__doc__).splitlines()[0],
            citation="",
            inputs_description="predictions and references: class numbers from 0",
            features=datasets.Features({"predictions": integer, "references": integer}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        confusion = confusion_matrix(np.asarray(predictions), np.asarray(references))
        return {self._metric: CONFUSION_METRICS[self._metric](confusion)}


def evaluate_metric(name: str, predictions: Classes, references: Classes) -> float:
    """Compute one metric through ``evaluate``; a name that is not built in is loaded by it.

    Raises:
        SourceError: the metric is not built in and ``evaluate`` cannot load it.
        DataError: the metric cannot be computed on these predictions.
    """
    # evaluate makes a folder per metric even when it keeps all in memory: give it one of its own,
    # so that no cache is written and trials in parallel do not meet.
    with TemporaryDirectory(prefix="hfcompress-") as folder:
        if name in CONFUSION_METRICS:
            metric: Any = ConfusionMetric(name, cache_dir=folder)
        else:
            metric = _load(name, folder)
        try:
            result = metric.compute(predictions=predictions, references=references)
        except (ValueError, TypeError) as error:
            raise DataError(f"the metric {name!r} cannot be computed: {error}") from error
    return _single(name, result)


def _load(name: str, folder: str) -> Any:
    try:
        return evaluate.load(name, cache_dir=folder, keep_in_memory=True)
    except Exception as error:  # evaluate raises a dozen types: no hub, no module, no dependency
        reason = first_line(error)
        raise SourceError(
            f"the metric {name!r} is not built in and evaluate cannot load it ({reason}); "
            f"write one of {', '.join(CONFUSION_METRICS)}, or go online"
        ) from None


def _single(name: str, result: Mapping[str, Any]) -> float:
    values = {key: value for key, value in result.items() if np.ndim(value) == 0}
    value = values.get(name, next(iter(values.values()), None))
    if value is None:
        raise DataError(f"the metric {name!r} gives no single number; its fields: {list(result)}")
    return float(value)
