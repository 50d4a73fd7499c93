"""How many channels each group keeps, where costs multiply. Numbers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hfcompress.errors import ConfigError
from hfcompress.shrinking.channels.costs import ChannelCosts
from hfcompress.shrinking.widths import Widths, written

Allowed = Mapping[str, Sequence[int]]
_EPSILON = 1 + 1e-9


def check_channel_budget(costs: ChannelCosts, allowed: Allowed, limit: float, unit: str) -> None:
    """Refuse a budget that no choice of widths fits.

    Raises:
        ConfigError: it is below the least that can be reached.
    """
    least = costs.total({name: min(widths) for name, widths in allowed.items()})
    if least > limit * _EPSILON:
        raise ConfigError(
            f"the budget of {written(limit)} {unit} is below what removing channels can reach "
            f"here; the least is {written(least)}"
        )


def uniform_channels(costs: ChannelCosts, allowed: Allowed, limit: float) -> Widths:
    """The same share of every group's units, as large as the budget allows."""

    def at(step: int) -> Widths:
        return {
            name: min(widths, key=lambda width: (abs(width - step / 1000 * max(widths)), width))
            for name, widths in allowed.items()
        }

    return _largest(at, costs, limit, 1000)


def ranked_channels(
    costs: ChannelCosts, allowed: Allowed, scores: Mapping[str, Sequence[float]], limit: float
) -> Widths:
    """One ranking of all units by score for what each saves; the budget is filled from the top."""
    full = {name: max(widths) for name, widths in allowed.items()}
    owners: list[str] = []
    worth: list[float] = []
    for name, values in scores.items():
        each = costs.saved(full, name, max(full[name] - 1, 0))
        owners += [name] * len(values)
        worth += [value / max(each, 1e-30) for value in values]
    order = np.argsort(-np.asarray(worth), kind="stable")

    def at(step: int) -> Widths:
        counts = dict.fromkeys(allowed, 0)
        for place in order[:step]:
            counts[owners[place]] += 1
        return {
            name: max((w for w in widths if w <= counts[name]), default=min(widths))
            for name, widths in allowed.items()
        }

    return _largest(at, costs, limit, len(order))


def least_change(
    costs: ChannelCosts, errors: Mapping[str, Mapping[int, float]], limit: float
) -> Widths:
    """Narrow whichever group loses least for what it saves, until the budget is met.

    Each step looks at all lower widths of a group, so that an error that falls in jumps does not
    hold it up. (Marginal allocation; what is saved is counted at the widths reached so far.)

    Args:
        costs: of widths.
        errors: by group and allowed width.
        limit: what all may cost; `check_channel_budget` says whether it can be met.
    """
    widths = {name: max(levels) for name, levels in errors.items()}
    spent = costs.total(widths)
    while spent > limit * _EPSILON:
        steps = [
            ((errors[name][lower] - errors[name][now]) / saved, -saved, name, lower)
            for name, now in widths.items()
            for lower in errors[name]
            if lower < now and (saved := costs.saved(widths, name, lower)) > 0
        ]
        _, _, name, lower = min(steps)
        need = spent - limit
        # The last step goes no further than it has to.
        enough = [w for w in errors[name] if w < widths[name]
                  and costs.saved(widths, name, w) * _EPSILON >= need]  # fmt: skip
        widths[name] = max(lower, max(enough, default=lower))
        spent = costs.total(widths)
    return _filled(widths, costs, errors, limit)


def _filled(
    widths: Widths, costs: ChannelCosts, errors: Mapping[str, Mapping[int, float]], limit: float
) -> Widths:
    """What is left of the budget is spent where it helps most."""
    while True:
        left = limit * _EPSILON - costs.total(widths)
        steps = [
            ((errors[name][now] - errors[name][wider]) / cost, name, wider)
            for name, now in widths.items()
            for wider in errors[name]
            if wider > now and (cost := -costs.saved(widths, name, wider)) <= left and cost > 0
        ]
        if not steps:
            return widths
        _, name, wider = max(steps)
        widths = {**widths, name: wider}


def _largest(at: Callable[[int], Widths], costs: ChannelCosts, limit: float, steps: int) -> Widths:
    """The last of a growing sequence of choices that fits, by bisection."""
    low, high = 0, steps
    while low < high:
        middle = (low + high + 1) // 2
        if costs.total(at(middle)) <= limit * _EPSILON:
            low = middle
        else:
            high = middle - 1
    return at(low)
