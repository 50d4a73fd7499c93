"""Which of two models is better, and how sure that is: paired on the same rows, else by intervals.

Differences are ``first - second`` in the direction of the metric: positive where the first model is
better, of an error metric, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm

from hfcompress.errors import DataError
from hfcompress.measure.bootstrap import paired_p
from hfcompress.measure.evaluation import RESAMPLES, predicted_classes
from hfcompress.measure.metrics import CONFUSION_METRICS

Test = Literal["McNemar", "paired bootstrap", "intervals"]
SIGNIFICANCE = 0.05
_Z95 = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Difference:
    """How much better a first model is than a second one.

    Attributes:
        value: the difference; positive where the first model is better.
        low, high: its 95 % interval; None where nothing is known of the models' own.
        p: two-sided p-value of no difference; None likewise.
        test: what it is of; None where there was nothing to test.
        n: rows that both models answered; None where these differ.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: Test | None = None
    n: int | None = None

    @property
    def is_certain(self) -> bool:
        """Whether the models differ beyond noise: p is below 0.05."""
        return self.p is not None and self.p < SIGNIFICANCE

    def to_dict(self) -> dict[str, object]:
        """The fields as plain data for JSON."""
        return asdict(self)


def compare_right(first: npt.ArrayLike, second: npt.ArrayLike) -> Difference:
    """Compare two models' accuracy on the same rows: McNemar's exact test (1947), and the interval
    of the difference by paired bootstrap.

    Only rows that exactly one of the two gets right count; a bootstrap draws their numbers.

    Args:
        first: [rows], whether the first model is right.
        second: likewise the second model.

    Raises:
        DataError: no rows, or arrays of different lengths.
    """
    a, b = np.asarray(first, np.bool_), np.asarray(second, np.bool_)
    _check_paired(a.shape, b.shape)
    n, won, lost = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    draws = np.random.default_rng(0).multinomial(
        n, [won / n, lost / n, (n - won - lost) / n], RESAMPLES
    )
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [0.025, 0.975])
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return Difference((won - lost) / n, float(low), float(high), p, "McNemar", n)


def compare_scores(first: npt.ArrayLike, second: npt.ArrayLike) -> Difference:
    """Compare the means of two models' scores on the same rows, by paired bootstrap.

    Scores that are all 0 or 1 are right and wrong answers: see `compare_right`.

    Args:
        first: [rows], of the first model; higher is better.
        second: likewise.

    Raises:
        DataError: no rows, or arrays of different lengths.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    _check_paired(a.shape, b.shape)
    if bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        return compare_right(a, b)
    generator, n, apart = np.random.default_rng(0), len(a), a - b
    draws = np.array([apart[generator.integers(0, n, n)].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(draws, [0.025, 0.975])
    return Difference(
        float(apart.mean()), float(low), float(high), paired_p(draws), "paired bootstrap", n
    )


def compare_classes(
    metric: str, first: npt.ArrayLike, second: npt.ArrayLike, labels: npt.ArrayLike
) -> Difference:
    """Compare two models on the same rows by a metric of the confusion matrix, by paired bootstrap;
    accuracy as `compare_right`.

    Args:
        metric: one of `metric_names`.
        first: the first model's logits [rows, classes], or class ids [rows].
        second: likewise.
        labels: class ids [rows].

    Raises:
        DataError: no rows, or arrays that do not match each other or the metric.
    """
    a, b, truth = predicted_classes(first), predicted_classes(second), predicted_classes(labels)
    for other in (b, truth):
        _check_paired(a.shape, other.shape)
    if metric == "accuracy":
        return compare_right(a == truth, b == truth)
    # The metrics depend on how often each triple of answers and label occurs: one multinomial draw
    # of these numbers replaces n draws of rows.
    kinds, counts = np.unique(np.stack([truth, a, b], 1), axis=0, return_counts=True)
    size, n = int(kinds.max()) + 1, len(truth)
    cells = [kinds[:, 0] * size + kinds[:, column] for column in (1, 2)]
    value = CONFUSION_METRICS[metric]

    def apart(numbers: npt.NDArray[np.int64]) -> float:
        ours, theirs = (
            np.bincount(cell, numbers, size * size).astype(np.float64).reshape(size, size)
            for cell in cells
        )
        return value(ours) - value(theirs)

    drawn = np.random.default_rng(0).multinomial(n, counts / n, RESAMPLES)
    draws = np.array([apart(numbers) for numbers in drawn])
    low, high = np.quantile(draws, [0.025, 0.975])
    p = paired_p(draws)
    return Difference(apart(counts), float(low), float(high), p, "paired bootstrap", n)


def compare_intervals(
    first: float,
    second: float,
    first_interval: tuple[float, float] | None = None,
    second_interval: tuple[float, float] | None = None,
    *,
    lower_is_better: bool = False,
) -> Difference:
    """Compare two values that were measured on different rows, by their 95 % intervals.

    The difference of two independent values has the sum of their variances.

    Args:
        first: the first model's value.
        second: the second model's.
        first_interval: low and high of the first value; without both no test is made.
        second_interval: likewise.
        lower_is_better: the value is an error.
    """
    value = second - first if lower_is_better else first - second
    if first_interval is None or second_interval is None:
        return Difference(value)
    widths = [high - low for low, high in (first_interval, second_interval)]
    error = math.hypot(*widths) / (2 * _Z95)
    if error == 0:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0, "intervals")
    p = 2 * float(norm.sf(abs(value) / error))
    return Difference(value, value - _Z95 * error, value + _Z95 * error, p, "intervals")


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences with p-values that hold for all of them together (Holm 1979,
    https://www.jstor.org/stable/4615733): those of many tests would otherwise find one by luck."""
    known = [place for place, one in enumerate(differences) if one.p is not None]
    order = sorted(known, key=lambda place: (differences[place].p or 0.0, place))
    found, largest = list(differences), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (differences[place].p or 0.0)))
        found[place] = replace(differences[place], p=largest)
    return found


def _check_paired(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """Refuse arrays that do not have one answer of each model for each row."""
    if first != second or len(first) != 1 or not first[0]:
        raise DataError(f"need one answer of each model for each row, not {first} and {second}")
