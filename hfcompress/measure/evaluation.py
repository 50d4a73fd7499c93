"""Metrics of predictions with confidence intervals, and paired tests against a dense model.

Predictions are logits of shape (examples, classes) or class ids of shape (examples,); labels are
class ids from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NotRequired

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from typing_extensions import TypedDict

from hfcompress.errors import ConfigError, DataError
from hfcompress.measure.metrics import CONFUSION_METRICS, Classes, confusion_matrix, evaluate_metric
from hfcompress.utils import FormerPlain

RESAMPLES = 1000  # bootstrap draws


def metric_names() -> tuple[str, ...]:
    """The built-in metrics, which need no network; other names must be trusted."""
    return tuple(CONFUSION_METRICS)


def predicted_classes(predictions: npt.ArrayLike) -> Classes:
    """Class ids, by argmax from logits of shape (examples, classes) or taken as given.

    Raises:
        DataError: no examples, NaN logits, negative or fractional class ids.
    """
    array = np.asarray(predictions)
    if array.size == 0:
        raise DataError("no predictions: the evaluation split is empty")
    if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
        broken = np.isnan(array).reshape(len(array), -1).any(1).sum()
        raise DataError(
            f"{broken} of {len(array)} predictions are NaN; check the model's weights and dtype"
        )
    if array.ndim == 2:
        array = array.argmax(1)
    elif array.ndim != 1:
        raise DataError(f"predictions must have shape (n,) or (n, classes), not {array.shape}")
    classes: Classes = array.astype(np.int64)
    if (classes != array).any() or classes.min() < 0:
        raise DataError(
            "class ids must be whole numbers from 0; pass logits, or take their argmax first"
        )
    return classes


def compute_metric(name: str, predictions: npt.ArrayLike, references: npt.ArrayLike) -> float:
    """The value of one metric, computed by the ``evaluate`` package.

    Args:
        name: one of `metric_names`, or one that `hfcompress.measure.metrics.trust_metric` allows
            ``evaluate.load`` to run.
        predictions: logits of shape (n, classes), or n class ids.
        references: n class ids.

    Raises:
        SourceError: the metric is not built in and cannot be loaded.
        DataError: the predictions do not match the labels or the metric.
    """
    return evaluate_metric(name, *_paired(predictions, references))


def confidence_interval(
    name: str,
    predictions: npt.ArrayLike,
    references: npt.ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The metric's confidence interval for sampling of the examples, as (low, high).

    Accuracy: the score interval of Wilson (1927), which stays in [0, 1]. Others: the percentile
    bootstrap (Efron 1979).

    Args:
        name: as in `compute_metric`.
        predictions: logits of shape (n, classes), or n class ids.
        references: n class ids.
        level: coverage, in (0, 1).
        resamples: bootstrap draws; unused for accuracy.
        seed: for the bootstrap; unused for accuracy.

    Raises:
        ConfigError: a level outside (0, 1).
        SourceError, DataError: as `compute_metric`.
    """
    if not 0 < level < 1:
        raise ConfigError(
            f"level must be between 0 and 1, not {level}; use 0.95 for a 95 % interval"
        )
    classes, labels = _paired(predictions, references)
    if name == "accuracy":
        interval = binomtest(int((classes == labels).sum()), len(labels)).proportion_ci(
            level, method="wilson"
        )
        return float(interval.low), float(interval.high)
    values = np.fromiter(_bootstrap(name, classes, labels, resamples, seed), dtype=np.float64)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def standard_error(
    name: str,
    predictions: npt.ArrayLike,
    references: npt.ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """The metric's standard error: sqrt(p (1 - p) / n) for accuracy, else by bootstrap.

    Raises:
        SourceError, DataError: as `compute_metric`.
    """
    classes, labels = _paired(predictions, references)
    if name == "accuracy":
        rate = float((classes == labels).mean())
        return float(np.sqrt(rate * (1 - rate) / len(labels)))
    values = np.fromiter(_bootstrap(name, classes, labels, resamples, seed), dtype=np.float64)
    return float(values.std(ddof=1))


def _bootstrap(
    name: str, classes: Classes, labels: Classes, resamples: int, seed: int
) -> Iterator[float]:
    """Yield the metric on samples of n examples drawn with replacement."""
    generator, n = np.random.default_rng(seed), len(labels)
    if name in CONFUSION_METRICS:
        # The metric depends on the confusion matrix alone: one multinomial draw of its cells
        # replaces n draws of examples.
        confusion = confusion_matrix(classes, labels)
        cells = np.nonzero(confusion)
        chances, sample = confusion[cells] / n, np.zeros_like(confusion)
        for _ in range(resamples):
            sample[cells] = generator.multinomial(n, chances)
            yield CONFUSION_METRICS[name](sample)
        return
    for _ in range(resamples):
        rows = generator.integers(0, n, size=n)
        yield evaluate_metric(name, classes[rows], labels[rows])


def agreement(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """The fraction of examples for which two models predict the same class.

    Raises:
        DataError: the predictions differ in length.
    """
    first, second = _paired(a, b)
    return float((first == second).mean())


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Two-sided p-value of the exact McNemar (1947) test that two models err equally often.

    Only examples that exactly one model gets right count; under the null hypothesis either model
    is right with probability 1/2. Without such examples the p-value is 1.

    Args:
        a: one model's logits of shape (n, classes), or n class ids.
        b: the other model's.
        labels: n class ids.

    Raises:
        DataError: the arrays differ in length.
    """
    first, truth = _paired(a, labels)
    second, _ = _paired(b, labels)
    only_first = int(((first == truth) & (second != truth)).sum())
    only_second = int(((first != truth) & (second == truth)).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


@dataclass(frozen=True)
class Quality(FormerPlain):
    """A metric with its confidence interval, and the comparison with a dense model.

    All values are fractions, not percent.

    Attributes:
        metric: its name.
        value: on the ``n`` examples.
        low, high: confidence interval.
        standard_error: of ``value``.
        n: number of examples.
        agreement: as `agreement` with the dense model; None without one.
        mcnemar_p: as `mcnemar` against the dense model; None without one.
        drop: the dense model's value minus ``value``; None without one.
        drop_low, drop_high: interval of ``drop`` by paired bootstrap, where `mcnemar` does not
            apply: the metric is not of one right or wrong class for each example.
        paired_p: two-sided p-value of no difference, likewise.
        folds: as `count_folds`, of accuracy against a dense model; else None.
    """

    metric: str
    value: float
    low: float
    high: float
    standard_error: float
    n: int
    agreement: float | None
    mcnemar_p: float | None
    drop: float | None
    drop_low: float | None = None
    drop_high: float | None = None
    paired_p: float | None = None
    folds: dict[str, list[int]] | None = field(default=None, repr=False)

    def with_drop(self, drop: float, interval: tuple[float, float], p: float) -> Quality:
        """A copy with the comparison by paired bootstrap."""
        low, high = interval
        return replace(self, drop=drop, drop_low=low, drop_high=high, paired_p=p)

    def to_dict(self) -> dict[str, object]:
        """The fields as plain data for JSON, under the names used in a report's rows."""
        return asdict(self)


def compare(
    metric: str,
    predictions: npt.ArrayLike,
    labels: npt.ArrayLike,
    dense: npt.ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Quality:
    """Evaluate a metric and, given the dense model's predictions, the difference from them.

    Args:
        metric: as in `compute_metric`.
        predictions: logits of shape (n, classes), or n class ids.
        labels: n class ids.
        dense: the dense model's predictions on the same examples in the same order.
        level: coverage of the interval, in (0, 1).
        resamples: bootstrap draws; unused for accuracy.
        seed: for the bootstrap; unused for accuracy.

    Raises:
        ConfigError, SourceError, DataError: as `confidence_interval`.
    """
    classes, truth = _paired(predictions, labels)
    value = compute_metric(metric, classes, truth)
    low, high = confidence_interval(
        metric, classes, truth, level=level, resamples=resamples, seed=seed
    )
    error = standard_error(metric, classes, truth, resamples=resamples, seed=seed)
    return Quality(
        metric=metric,
        value=value,
        low=low,
        high=high,
        standard_error=error,
        n=len(truth),
        agreement=None if dense is None else agreement(classes, dense),
        mcnemar_p=None if dense is None else mcnemar(classes, dense, truth),
        drop=None if dense is None else compute_metric(metric, dense, truth) - value,
        folds=None if dense is None or metric != "accuracy" else count_folds(classes, dense, truth),
    )


def count_folds(
    own: npt.ArrayLike, dense: npt.ArrayLike, labels: npt.ArrayLike, folds: int = 10
) -> dict[str, list[int]]:
    """Count in each fold of the examples what accuracy and its comparison are made of.

    With them a model can be chosen on some folds and measured on another (cross-validation, Stone
    1974). Example i is in fold i modulo ``folds``, so that rows in an order are spread.

    Returns:
        By fold: examples (``n``), those that the model gets ``right``, on which both ``agree``,
        that only the dense model gets right (``lost``), that only this one does (``gained``).

    Raises:
        DataError: the arrays differ in length.
    """
    mine, truth = _paired(own, labels)
    theirs, _ = _paired(dense, labels)
    right, before = mine == truth, theirs == truth
    counted = {
        "n": np.ones_like(right), "right": right, "agree": mine == theirs,
        "lost": before & ~right, "gained": right & ~before,
    }  # fmt: skip
    return {
        name: [int(found[start::folds].sum()) for start in range(folds)]
        for name, found in counted.items()
    }


def _paired(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Classes, Classes]:
    """Class ids of both, checked to have the same length."""
    first, second = predicted_classes(a), predicted_classes(b)
    if len(first) != len(second):
        raise DataError(
            f"got {len(first)} predictions for {len(second)} examples; use the same split for both"
        )
    return first, second


class ClassAccuracy(TypedDict):
    """Recall of one class, 0 to 1: of the compressed model (``value``) and of the dense one.

    ``metric`` names what else than the recall the values are.
    """

    name: str
    n: int
    value: float
    dense: float
    metric: NotRequired[str]


def class_accuracy(
    predictions: npt.ArrayLike,
    labels: npt.ArrayLike,
    dense: npt.ArrayLike,
    names: Sequence[str],
) -> list[ClassAccuracy]:
    """The recall of each class that occurs in the labels, for both models.

    Args:
        predictions: logits of shape (n, classes), or n class ids.
        labels: n class ids.
        dense: the dense model's predictions on the same examples.
        names: class names by id.

    Returns:
        One entry per class, ordered by class id.

    Raises:
        DataError: the predictions and labels differ in length, or a label has no name.
    """
    own, truth = _paired(predictions, labels)
    other, _ = _paired(dense, labels)
    if truth.max() >= len(names):
        raise DataError(f"label {truth.max()} has no name: {len(names)} class names were given")
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
