"""Accuracy, F1 and Matthews correlation as ``evaluate`` metrics that need no network.

Each is a function of the confusion matrix C, where ``C[i, j]`` counts the examples of class i that
were predicted as class j. A metric whose denominator is zero is 0, as in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Protocol

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

from hfcompress.config import nearest, shown
from hfcompress.errors import ConfigError, DataError, SourceError, first_line
from hfcompress.storage.temporary import temporary_root

Classes = npt.NDArray[np.int64]
Confusion = npt.NDArray[np.float64]


def confusion_matrix(predictions: Classes, references: Classes) -> Confusion:
    """Counts of shape (classes, classes): rows are the references, columns the predictions."""
    size = int(max(predictions.max(), references.max())) + 1
    counts = np.bincount(references * size + predictions, minlength=size * size)
    return counts.reshape(size, size).astype(np.float64)


def accuracy(confusion: Confusion) -> float:
    """The fraction of examples on the diagonal."""
    return float(np.trace(confusion) / confusion.sum())


def f1(confusion: Confusion) -> float:
    """F1 of class 1 of two classes: the harmonic mean of precision and recall.

    Raises:
        DataError: more than two classes.
    """
    return _of_class_1("f1", confusion, (confusion.sum(0) + confusion.sum(1)) / 2)


def matthews_correlation(confusion: Confusion) -> float:
    """Correlation of predictions and labels, for any number of classes (Gorodkin 2004)."""
    n, hits = confusion.sum(), np.trace(confusion)
    predicted, true = confusion.sum(0), confusion.sum(1)
    spread = (n * n - predicted @ predicted) * (n * n - true @ true)
    return float((hits * n - predicted @ true) / np.sqrt(spread)) if spread > 0 else 0.0


def balanced_accuracy(confusion: Confusion) -> float:
    """The unweighted mean of the recall of every class that occurs."""
    counts = confusion.sum(1)
    return float((np.diag(confusion)[counts > 0] / counts[counts > 0]).mean())


def cohen_kappa(confusion: Confusion) -> float:
    """Agreement beyond what independent predictions of the same frequencies have (Cohen 1960)."""
    n = confusion.sum()
    expected = float(confusion.sum(0) @ confusion.sum(1)) / (n * n)
    return (accuracy(confusion) - expected) / (1 - expected) if expected < 1 else 0.0


def precision(confusion: Confusion) -> float:
    """The share of class 1 of two classes among the examples predicted as it.

    Raises:
        DataError: more than two classes.
    """
    return _of_class_1("precision", confusion, confusion.sum(0))


def recall(confusion: Confusion) -> float:
    """The share of class 1 of two classes that is predicted as it.

    Raises:
        DataError: more than two classes.
    """
    return _of_class_1("recall", confusion, confusion.sum(1))


def _of_class_1(name: str, confusion: Confusion, totals: Confusion) -> float:
    if len(confusion) > 2:
        raise DataError(f"{name} needs two classes, but {len(confusion)} occur; use {name}_macro")
    return float(confusion[1, 1] / totals[1]) if len(confusion) == 2 and totals[1] else 0.0


def _averaged(name: str, average: str) -> Callable[[Confusion], float]:
    """Precision, recall or F1 of every class, averaged as scikit-learn does."""

    def metric(confusion: Confusion) -> float:
        hits, predicted, true = np.diag(confusion), confusion.sum(0), confusion.sum(1)
        totals = {"precision": predicted, "recall": true, "f1": (predicted + true) / 2}[name]
        if average == "micro":
            return float(hits.sum() / totals.sum())
        scores: Confusion = np.zeros_like(totals)
        np.divide(hits, totals, out=scores, where=totals > 0)
        weights = true if average == "weighted" else (predicted + true > 0)
        return float(np.average(scores, weights=weights))

    metric.__doc__ = f"The {average} average of the {name} of every class."
    return metric


_AVERAGED = {
    f"{name}_{average}": _averaged(name, average)
    for name in ("f1", "precision", "recall")
    for average in ("macro", "micro", "weighted")
}

CONFUSION_METRICS: Mapping[str, Callable[[Confusion], float]] = MappingProxyType(
    {
        "accuracy": accuracy,  # first: the usual one, that a recipe without a metric measures
        "balanced_accuracy": balanced_accuracy,
        "cohen_kappa": cohen_kappa,
        "f1": f1,
        "matthews_correlation": matthews_correlation,
        "precision": precision,
        "recall": recall,
        **_AVERAGED,
    }
)
_trusted: set[str] = set()


def trust_metric(name: str) -> None:
    """Allow `evaluate_metric` to load a metric that is not built in, for the rest of the process.

    ``evaluate`` runs the script of such a metric, from the hub or from a local path.
    """
    _trusted.add(name)


class _Metric(Protocol):
    """What is used of an ``evaluate.EvaluationModule``."""

    def compute(self, *, predictions: Classes, references: Classes) -> Mapping[str, object]: ...


class ConfusionMetric(evaluate.Metric):  # type: ignore[misc]
    """An ``evaluate`` metric over class ids that downloads nothing and keeps nothing on disk.

    Args:
        name: one of `CONFUSION_METRICS`.
        cache_dir: as in ``evaluate.Metric``.
    """

    def __init__(self, name: str, cache_dir: str | None = None) -> None:
        self._metric = name
        super().__init__(config_name=name, keep_in_memory=True, cache_dir=cache_dir)

    def _info(self) -> evaluate.MetricInfo:
        integer = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=str(CONFUSION_METRICS[self._metric].__doc__).splitlines()[0],
            citation="",
            inputs_description="predictions and references: class ids from 0",
            features=datasets.Features({"predictions": integer, "references": integer}),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        confusion = confusion_matrix(np.asarray(predictions), np.asarray(references))
        return {self._metric: CONFUSION_METRICS[self._metric](confusion)}


def evaluate_metric(name: str, predictions: Classes, references: Classes) -> float:
    """The value of one metric; a name that is not built in is loaded by ``evaluate``, which runs
    the script of that name: `trust_metric` must allow it.

    Raises:
        ConfigError: the metric is neither built in nor trusted.
        SourceError: the metric is not built in and ``evaluate`` cannot load it.
        DataError: the metric cannot be computed from these predictions.
    """
    if name not in _trusted:
        check_metric(name)
    # evaluate creates a folder per metric even with keep_in_memory. A temporary one leaves the
    # cache untouched and keeps parallel trials apart.
    with TemporaryDirectory(dir=temporary_root()) as folder:
        metric = _load(name, folder)
        try:
            result = metric.compute(predictions=predictions, references=references)
        except (ValueError, TypeError) as error:
            raise DataError(f"cannot compute the metric {name!r}: {error}") from error
    return _scalar(name, result)


def check_metric(name: str) -> None:
    """Refuse the name of a metric that is not built in.

    Raises:
        ConfigError: it is not.
    """
    if name not in CONFUSION_METRICS:
        raise ConfigError(
            f"the metric {shown(name)} is not built in{nearest(name, [*CONFUSION_METRICS])} (a "
            f"metric of evaluate's hub or a local script is code that would run: write "
            f"measure.trust_remote_code: true and give --trust-remote-code)"
        )


def _load(name: str, folder: str) -> _Metric:
    if name in CONFUSION_METRICS:
        return ConfusionMetric(name, cache_dir=folder)
    try:
        metric: _Metric = evaluate.load(name, cache_dir=folder, keep_in_memory=True)
    except Exception as error:  # evaluate raises many types: hub, module and dependency errors
        raise SourceError(
            f"the metric {name!r} is not built in and evaluate cannot load it "
            f"({first_line(error)}); use one of {', '.join(CONFUSION_METRICS)}, or go online"
        ) from None
    return metric


def _scalar(name: str, result: Mapping[str, object]) -> float:
    """The field called like the metric, else the first field that holds one number."""
    scalars = {
        key: value
        for key, value in result.items()
        if value is not None and np.asarray(value).ndim == 0
    }
    if not scalars:
        raise DataError(
            f"the metric {name!r} returns no single number, only the fields {list(result)}; "
            "use another metric"
        )
    return float(np.asarray(scalars.get(name, next(iter(scalars.values())))))
