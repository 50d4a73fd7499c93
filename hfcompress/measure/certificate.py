"""How much accuracy a smaller model loses at most: an exact bound from paired answers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import bdtr
from scipy.stats import beta, binom, norm

from hfcompress.errors import ConfigError, DataError

# Share of the error rate that is spent on the interval of the nuisance parameter.
_GAMMA = 0.001
_GRID = 33  # points of that interval at which the tail is computed


@dataclass(frozen=True)
class Certificate:
    """What paired answers say of the accuracy that a smaller model loses.

    All shares are fractions, not percent.

    Attributes:
        max_drop: the loss that was asked about.
        confidence: as asked, such as 0.95.
        n: rows.
        lost: rows that only the dense model gets right.
        gained: rows that only the smaller model gets right.
        drop: accuracy lost on these rows, ``(lost - gained) / n``.
        bound: upper confidence bound of the loss on rows of the same kind.
        rows_needed: about how many rows would make it certain, were the rates as seen; None
            where it is certain, or where the loss that was seen is not below ``max_drop``.
    """

    max_drop: float
    confidence: float
    n: int
    lost: int
    gained: int
    drop: float
    bound: float
    rows_needed: int | None

    @property
    def certain(self) -> bool:
        """Whether the bound is at most ``max_drop``."""
        return self.bound <= self.max_drop

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        asked, sure = f"{100 * self.max_drop:.1f} points", f"{self.confidence:.0%} sure"
        seen = f"{100 * self.drop:+.1f} seen: {self.lost} rows lost, {self.gained} gained"
        if self.certain:
            return f"at most {asked} are lost, {sure}, on {self.n:,} rows ({seen})"
        if self.rows_needed is None:
            return f"not certain with {self.n:,} rows: the loss seen is not below {asked} ({seen})"
        return (
            f"not certain with {self.n:,} rows; about {self.rows_needed:,} would do "
            f"({seen}; at most {100 * self.bound:.1f} points are lost, {sure})"
        )

    def to_dict(self) -> dict[str, object]:
        """The fields as plain data, and the outcome."""
        return {**asdict(self), "certain": self.certain, "sentence": self.sentence}


def certify_drop(
    dense_right: npt.ArrayLike,
    small_right: npt.ArrayLike,
    max_drop: float,
    confidence: float = 0.95,
) -> Certificate:
    """Bound the accuracy that a smaller model loses against a dense one.

    Only rows that exactly one of the two models gets right count. The bound is that of an exact
    unconditional test of "the loss is d": the tail probability of ``lost - gained`` is the largest
    over a 99.9 % interval of the share of such rows, and the 0.1 % is added (Berger and Boos 1994,
    https://doi.org/10.2307/2290928).

    Args:
        dense_right: [rows], whether the dense model is right.
        small_right: likewise the smaller model, on the same rows.
        max_drop: largest loss that is acceptable, a fraction in [0, 1).
        confidence: in (0.5, 0.999).

    Raises:
        ConfigError: a value out of range.
        DataError: no rows, or arrays of different lengths.
    """
    if not 0 <= max_drop < 1:
        raise ConfigError(f"max_drop must be a fraction from 0 to 1, not {max_drop}")
    if not 0.5 < confidence < 1 - _GAMMA:
        raise ConfigError(f"confidence must be between 0.5 and 0.999, not {confidence}")
    dense, small = np.asarray(dense_right, bool), np.asarray(small_right, bool)
    if dense.shape != small.shape or dense.ndim != 1 or not dense.size:
        raise DataError(
            f"need one answer of each model for each row, not {dense.shape} and {small.shape}"
        )
    n, lost, gained = len(dense), int((dense & ~small).sum()), int((small & ~dense).sum())
    bound = drop_bound(n, lost, gained, confidence)
    drop = (lost - gained) / n
    needed = None if bound <= max_drop else _rows_needed(n, lost, gained, max_drop, confidence)
    return Certificate(max_drop, confidence, n, lost, gained, drop, bound, needed)


def drop_bound(n: int, lost: int, gained: int, confidence: float = 0.95) -> float:
    """Return the upper confidence bound of the loss, in [-1, 1].

    Args:
        n: rows.
        lost: rows that only the dense model gets right.
        gained: rows that only the smaller model gets right.
        confidence: coverage of the bound.
    """
    seen = (lost - gained) / n

    def excess(drop: float) -> float:
        return drop_p_value(n, lost, gained, drop) - (1 - confidence)

    end = min(1.0, seen + 1e-9)
    step = 1 / math.sqrt(n)
    while excess(end) > 0 and end < 1:
        end = min(1.0, end + step)
    if end >= 1:
        return 1.0
    start = max(seen, end - step) if end > seen + step else seen
    return float(brentq(excess, start, end, xtol=1e-6)) if excess(start) > 0 else start


def drop_p_value(n: int, lost: int, gained: int, drop: float) -> float:
    """Return the p-value of the test that the true loss is ``drop`` or more.

    Args:
        n: rows.
        lost: rows that only the dense model gets right.
        gained: rows that only the smaller model gets right.
        drop: the loss, a fraction.
    """
    low, high = _interval(n, lost + gained, 1 - _GAMMA)
    return _tail(n, lost - gained, drop, low, high) + _GAMMA


def _tail(n: int, difference: int, drop: float, low: float, high: float) -> float:
    """The largest P(lost - gained <= difference) at a true loss, over shares of unequal rows."""
    largest = 0.0
    for share in np.linspace(max(low, abs(drop)), min(1.0, max(high, abs(drop))), _GRID).tolist():
        chance = 0.5 if share == 0 else min(1.0, (1 + drop / share) / 2)
        width = 9 * math.sqrt(n * share * (1 - share)) + 9  # beyond it less than 1e-15 is left
        first, last = max(0, int(n * share - width)), min(n, int(n * share + width) + 1)
        unequal = np.arange(first, last + 1)
        most = np.floor((unequal + difference) / 2)  # lost rows, given how many are unequal
        # bdtr is scipy's binomial distribution without the checks of its arguments.
        inside = np.where(most < 0, 0.0, bdtr(np.clip(most, 0, unequal), unequal, chance))
        largest = max(largest, float(binom.pmf(unequal, n, share) @ inside))
    return largest


def _interval(n: int, count: int, level: float) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934)."""
    rest = (1 - level) / 2
    low = 0.0 if count == 0 else float(beta.ppf(rest, count, n - count + 1))
    high = 1.0 if count == n else float(beta.ppf(1 - rest, count + 1, n - count))
    return low, high


def _rows_needed(n: int, lost: int, gained: int, max_drop: float, confidence: float) -> int | None:
    """About how many rows would make the bound pass at the rates that were seen."""
    drop, unequal = (lost - gained) / n, max(lost + gained, 1) / n
    if drop >= max_drop:
        return None
    variance = unequal - drop**2
    rows = norm.ppf(confidence + _GAMMA) ** 2 * variance / (max_drop - drop) ** 2
    return max(n + 1, _two_digits(rows))


def _two_digits(value: float) -> int:
    """Round up to two significant digits."""
    unit = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return int(math.ceil(value / unit) * unit)
