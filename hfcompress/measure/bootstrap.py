"""Metrics of any kind of unit (rows, sentences, questions): intervals and paired comparison.

The percentile bootstrap (Efron 1979) draws units with replacement. A dense model is compared on the
same draws, so that what is hard for both cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hfcompress.errors import ConfigError, DataError
from hfcompress.measure.evaluation import RESAMPLES, Quality

Units = NDArray[np.int64]
Value: TypeAlias = Callable[[Units], float]
"""Numbers of units, some several times -> the metric on them."""
LOWER_IS_BETTER = frozenset({"rmse", "pseudo_perplexity"})
"""Metrics that are errors: their drop is how much they have risen."""


def of_sums(sums: NDArray[np.float64], value: Callable[[NDArray[np.float64]], float]) -> Value:
    """Return a metric that is a function of sums over units, such as a ratio of counts.

    Args:
        sums: [units, parts].
        value: their sum [parts] -> the metric.
    """
    return lambda units: value(sums[units].sum(0))


def of_mean(values: NDArray[np.float64]) -> Value:
    """Return a metric that is the mean of its values of units.

    Args:
        values: [units].
    """
    return lambda units: float(values[units].mean())


def compare_units(
    metric: str,
    value: Value,
    n: int,
    dense: Value | None = None,
    agreement: float | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Quality:
    """Evaluate a metric with its interval and, given the dense model's, the paired difference.

    Args:
        metric: its name.
        value: of the model.
        n: number of units.
        dense: of the dense model, on the same units.
        agreement: share of the answers that both models give; None where it is not known.
        level: coverage of the intervals, in (0, 1).
        resamples: draws.
        seed: of the draws.

    Raises:
        ConfigError: a level outside (0, 1).
        DataError: no units.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, not {level}; use 0.95 for 95 %")
    if n == 0:
        raise DataError("no predictions: the evaluation split is empty")
    generator, everything = np.random.default_rng(seed), np.arange(n)
    draws = [generator.integers(0, n, n) for _ in range(resamples)]
    own = np.array([value(units) for units in draws])
    shares = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(own, shares)
    whole = value(everything)
    found = Quality(
        metric=metric, value=whole, low=float(low), high=float(high),
        standard_error=float(own.std(ddof=1)), n=n, agreement=agreement, mcnemar_p=None, drop=None,
    )  # fmt: skip
    if dense is None:
        return found
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    drops = sign * (np.array([dense(units) for units in draws]) - own)
    drop_low, drop_high = np.quantile(drops, shares)
    return found.with_drop(
        sign * (dense(everything) - whole), (float(drop_low), float(drop_high)), paired_p(drops)
    )


def paired_p(drops: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of no difference, from the differences on resampled units."""
    tails = (1 + np.count_nonzero(drops <= 0), 1 + np.count_nonzero(drops >= 0))
    return min(1.0, 2 * float(min(tails)) / (1 + len(drops)))
