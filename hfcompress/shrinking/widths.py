"""Widths of the sublayers that fit a budget: exact, uniform or by one ranking. Numbers only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from hfcompress.errors import ConfigError

FloatArray = npt.NDArray[np.float64]
Widths = dict[str, int]
"""Units kept, by sublayer."""
Table = Mapping[str, Mapping[int, float]]
"""For each sublayer a value at each width that it may have."""
Allowed = Mapping[str, Sequence[int]]
"""Widths that each group of units may have."""
_BUCKETS = 10_000
"""Units into which the dynamic program divides the budget."""


def total(costs: Table, widths: Mapping[str, int]) -> float:
    """Cost of a choice."""
    return sum(costs[name][width] for name, width in widths.items())


def check_budget(costs: Costs) -> None:
    """Refuse a budget that no choice of widths fits.

    Raises:
        ConfigError: it is below the least that can be reached.
    """
    if costs.least > costs.limit * (1 + 1e-9):
        raise ConfigError(
            f"the budget of {written(costs.limit + costs.fixed)} {costs.unit} is below what "
            f"shrinking can reach here; the least is {written(costs.least + costs.fixed)}"
        )


def written(value: float) -> str:
    """Format a cost."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def optimal(costs: Table, errors: Table, limit: float) -> Widths:
    """The widths of least summed error within a budget, by dynamic programming.

    (As Frantar and Alistarh 2022, SPDY, arXiv 2201.13096, for sparsities; Kurtic et al. 2023,
    ZipLM, arXiv 2302.04089, for widths and latency.)

    Args:
        costs: by sublayer and width.
        errors: by sublayer and width, at the same widths.
        limit: what all may cost; `check_budget` says whether it can be met.
    """
    widest = {name: max(levels) for name, levels in costs.items()}
    if _fits(costs, widest, limit):
        return widest  # nothing has to go
    unit = max(limit, 1e-12) / _BUCKETS
    best = np.zeros(_BUCKETS + 1)
    chosen: list[npt.NDArray[np.intp]] = []
    for name, levels in costs.items():
        new = np.full(_BUCKETS + 1, np.inf)
        width_at = np.zeros(_BUCKETS + 1, dtype=np.intp)
        for width in sorted(levels, reverse=True):  # of equal errors the widest
            price = _price(levels[width], unit)
            if price > _BUCKETS:
                continue
            candidate = np.full(_BUCKETS + 1, np.inf)
            candidate[price:] = best[: _BUCKETS + 1 - price] + errors[name][width]
            better = candidate < new
            new[better], width_at[better] = candidate[better], width
        best = new
        chosen.append(width_at)
    if not np.isfinite(best[-1]):  # prices are rounded up; the cheapest choice fits by check
        return {name: min(levels, key=levels.__getitem__) for name, levels in costs.items()}
    place, widths = _BUCKETS, {}
    for (name, levels), width_at in zip(
        reversed(list(costs.items())), reversed(chosen), strict=True
    ):
        widths[name] = int(width_at[place])
        place -= _price(levels[widths[name]], unit)
    return {name: widths[name] for name in costs}


def _price(cost: float, unit: float) -> int:
    return int(np.ceil(max(cost, 0.0) / unit - 1e-9))


def uniform(costs: Table, limit: float) -> Widths:
    """The same share of every sublayer's units, as large as the budget allows.

    Whole units make steps: where the next head of every layer would be too much, what is left of
    the budget goes to the other kinds of sublayers, those of the finest steps first, again the same
    share of all sublayers of a kind.

    Args:
        costs: by sublayer and width; the largest width is the whole sublayer.
        limit: what all may cost.
    """
    kinds = {name: tuple(sorted(levels)) for name, levels in costs.items()}

    def at(shares: Mapping[tuple[int, ...], int]) -> Widths:
        return {
            name: min(
                levels, key=lambda width: (abs(width - shares[levels] / 1000 * levels[-1]), width)
            )
            for name, levels in kinds.items()
        }

    def fits(some: Iterable[tuple[int, ...]], share: int) -> bool:
        return _fits(costs, at({**shares, **dict.fromkeys(some, share)}), limit)

    shares: dict[tuple[int, ...], int] = {}
    even = _largest(partial(fits, kinds.values()), 0, 1000)
    shares = dict.fromkeys(kinds.values(), even)
    for kind in sorted(shares, key=len, reverse=True):
        shares[kind] = _largest(partial(fits, [kind]), even, 1000)
    return at(shares)


def ranked(costs: Table, scores: Mapping[str, Sequence[float]], limit: float) -> Widths:
    """One ranking of all units by score for their cost; the budget is filled from the top.

    Args:
        costs: by sublayer and width.
        scores: by sublayer, one for each unit.
        limit: what all may cost.
    """
    owners, worth = [], []
    for name, levels in costs.items():
        each = (levels[max(levels)] - levels[min(levels)]) / max(max(levels) - min(levels), 1)
        owners += [name] * len(scores[name])
        worth += [score / max(each, 1e-30) for score in scores[name]]
    order = np.argsort(-np.asarray(worth), kind="stable")

    def at(step: int) -> Widths:
        counts = dict.fromkeys(costs, 0)
        for place in order[:step]:
            counts[owners[place]] += 1
        return {
            name: max((w for w in levels if w <= counts[name]), default=min(levels))
            for name, levels in costs.items()
        }

    return at(_largest(lambda step: _fits(costs, at(step), limit), 0, len(order)))


def _fits(costs: Table, widths: Widths, limit: float) -> bool:
    return total(costs, widths) <= limit * (1 + 1e-9)


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The last step that fits, by bisection; ``low`` is taken to."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def allowed_widths(units: int, least: int, multiple: int, most: int = 96) -> list[int]:
    """Widths that a sublayer may have, ascending, at most about ``most`` of them.

    Args:
        units: how many there are.
        least: how many must stay (all, where there are fewer).
        multiple: widths are multiples of it; the whole sublayer always is allowed.
        most: a coarser step is taken where there would be more.
    """
    step = multiple * max(1, round(units / (most * multiple)))
    return sorted({*(w for w in range(0, units, step) if w >= least), units})


@dataclass(frozen=True)
class Costs:
    """A budget, and what it is spent on.

    Attributes:
        table: by sublayer and allowed width.
        limit: what all units may cost.
        fixed: what the model costs without any unit; limit and fixed are the budget.
        unit: what is counted, for messages.
    """

    table: dict[str, dict[int, float]]
    limit: float
    fixed: float
    unit: str

    @property
    def least(self) -> float:
        """Cost of the narrowest choice."""
        return sum(min(levels.values()) for levels in self.table.values())

    @property
    def most(self) -> float:
        """Cost of the widest choice."""
        return sum(levels[max(levels)] for levels in self.table.values())
