"""Metrics of numbers: correlations, root mean square error, R2; means over several numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hfcompress.measure.bootstrap import Units, Value

Floats = NDArray[np.float64]
Weighted = Callable[[Floats, Floats, Floats], float]
"""Predictions, truth and weights of one number of each row -> a metric."""


def _pearson(found: Floats, truth: Floats, weights: Floats) -> float:
    total = weights.sum()
    ours, theirs = (values - weights @ values / total for values in (found, truth))
    spread = np.sqrt((weights @ ours**2) * (weights @ theirs**2))
    return float(weights @ (ours * theirs) / spread) if spread > 0 else 0.0


def _rmse(found: Floats, truth: Floats, weights: Floats) -> float:
    return float(np.sqrt(weights @ (found - truth) ** 2 / weights.sum()))


def _r2(found: Floats, truth: Floats, weights: Floats) -> float:
    spread = weights @ (truth - weights @ truth / weights.sum()) ** 2
    return float(1 - weights @ (found - truth) ** 2 / spread) if spread > 0 else 0.0


class _Ranks:
    """Average ranks of values on any choice of rows; the values are sorted once."""

    def __init__(self, values: Floats) -> None:
        self._order = np.argsort(values, kind="stable")
        ranked = values[self._order]
        self._group = np.concatenate([[0], np.cumsum(ranked[1:] != ranked[:-1])]).astype(np.int64)

    def __call__(self, weights: Floats) -> Floats:
        """Return the rank of each value, where value i occurs ``weights[i]`` times."""
        sizes = np.bincount(self._group, weights[self._order])
        middle = np.cumsum(sizes) - (sizes - 1) / 2
        ranks: Floats = np.empty_like(weights)
        ranks[self._order] = middle[self._group]
        return ranks


NUMBER_METRICS = ("pearson", "spearman", "rmse", "r2")
_PLAIN: Mapping[str, Weighted] = MappingProxyType({"pearson": _pearson, "rmse": _rmse, "r2": _r2})


def number_metric(name: str, found: Floats, truth: Floats) -> Value:
    """Return one of `NUMBER_METRICS` as a function of rows: the mean over the columns.

    A correlation with a constant is 0.

    Args:
        name: which.
        found: predictions, [rows, numbers].
        truth: likewise.
    """
    columns = range(truth.shape[1])
    ranks = [(_Ranks(found[:, n]), _Ranks(truth[:, n])) for n in columns if name == "spearman"]

    def value(units: Units) -> float:
        weights = np.bincount(units, minlength=len(truth)).astype(np.float64)
        if ranks:
            return float(np.mean([_pearson(a(weights), b(weights), weights) for a, b in ranks]))
        of = _PLAIN[name]
        return float(np.mean([of(found[:, n], truth[:, n], weights) for n in columns]))

    return value
