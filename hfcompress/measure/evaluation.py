"""How good predictions are, and whether they differ from the dense model's by more than noise.

Everything is computed from stored predictions: logits of examples x classes, or class numbers of
examples; labels are class numbers from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from hfcompress.errors import ConfigError, DataError
from hfcompress.measure.metrics import CONFUSION_METRICS, Classes, confusion_matrix, evaluate_metric

RESAMPLES = 1000


def metric_names() -> tuple[str, ...]:
    """The metrics that work with no network; any other name is asked of ``evaluate``."""
    return tuple(CONFUSION_METRICS)


def predicted_classes(predictions: npt.ArrayLike) -> Classes:
    """Class numbers of examples, from logits of examples x classes or from class numbers.

    Raises:
        DataError: no examples, NaN logits, negative or fractional class numbers.
    """
    array = np.asarray(predictions)
    if array.size == 0:
        raise DataError("there are no predictions; the evaluation split is empty")
    if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
        rows = np.isnan(array).reshape(len(array), -1).any(1).sum()
        raise DataError(f"{rows} of {len(array)} predictions are NaN; the model is broken")
    if array.ndim == 2:
        array = array.argmax(1)
    elif array.ndim != 1:
        raise DataError(f"predictions must be logits of n x classes, not of shape {array.shape}")
    classes: Classes = array.astype(np.int64)
    if (classes != array).any() or classes.min() < 0:
        raise DataError("class numbers must be whole numbers from 0; give logits or argmax first")
    return classes


def compute_metric(name: str, predictions: npt.ArrayLike, references: npt.ArrayLike) -> float:
    """One metric, through the ``evaluate`` package.

    Args:
        name: one of `metric_names`, or any that ``evaluate.load`` finds.
        predictions: logits of n x classes, or n class numbers.
        references: n class numbers.

    Raises:
        SourceError: a metric that is neither built in nor loadable.
        DataError: predictions that do not fit the labels or the metric.
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
    """The metric's confidence interval over which examples happened to be drawn.

    Accuracy: the score interval of Wilson (1927), which stays in [0, 1]. Others: the percentile
    bootstrap (Efron 1979).

    Args:
        name: a metric.
        predictions: logits of n x classes, or n class numbers.
        references: n class numbers.
        level: coverage, in (0, 1).
        resamples: bootstrap draws; not used for accuracy.
        seed: of the bootstrap; not used for accuracy.

    Raises:
        ConfigError: a level outside (0, 1).
        SourceError, DataError: as `compute_metric`.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must lie between 0 and 1, not {level}; 0.95 is usual")
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
    """The metric on samples of n examples drawn with replacement."""
    generator, n = np.random.default_rng(seed), len(labels)
    if name in CONFUSION_METRICS:
        # Drawing examples is drawing cells of the confusion matrix: one draw instead of n.
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
    """The fraction of examples on which two models predict the same class.

    Raises:
        DataError: predictions of different length.
    """
    first, second = _paired(a, b)
    return float((first == second).mean())


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Exact two-sided p of McNemar (1947): do two models err equally often?

    Only examples that one of them gets right and the other wrong say anything; under the null
    hypothesis each falls to either side with probability one half. No such example gives 1.

    Args:
        a: one model's logits of n x classes, or n class numbers.
        b: the other model's.
        labels: n class numbers.

    Raises:
        DataError: arrays of different length.
    """
    first, truth = _paired(a, labels)
    second, _ = _paired(b, labels)
    only_first = int(((first == truth) & (second != truth)).sum())
    only_second = int(((first != truth) & (second == truth)).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


@dataclass(frozen=True)
class Quality:
    """A metric with its interval and, against a dense model, what was lost.

    ``drop`` is the dense value minus this one; ``agreement``, ``mcnemar_p`` and ``drop`` are None
    without a dense model. Fractions, not percent.
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

    def to_dict(self) -> dict[str, Any]:
        """The fields as data that JSON can hold; rows of a report use the same names."""
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
    """Judge predictions by a metric and, where given, against the dense model's predictions.

    Args:
        metric: one of `metric_names`, or any that ``evaluate.load`` finds.
        predictions: logits of n x classes, or n class numbers.
        labels: n class numbers.
        dense: the dense model's predictions on the same examples in the same order.
        level: coverage of the interval.
        resamples: bootstrap draws, for metrics other than accuracy.
        seed: of the bootstrap.

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
    )


def _paired(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Classes, Classes]:
    first, second = predicted_classes(a), predicted_classes(b)
    if len(first) != len(second):
        raise DataError(
            f"there are {len(first)} predictions for {len(second)} examples; "
            "both must come from the same split"
        )
    return first, second


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
