"""Costs of a network by the widths of its groups of channels.

A convolution costs its outputs times its inputs: widths multiply, where those of heads and
neurons only add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod

import numpy as np
from torch import nn

from hfcompress.errors import ConfigError
from hfcompress.shrinking.channels.groups import ChannelGraph, Dimension, Term
from hfcompress.shrinking.channels.sides import Slot
from hfcompress.shrinking.widths import Allowed, Widths, written

ChannelWidths = Mapping[str, int]


class ChannelCosts:
    """A sum of terms.

    Args:
        terms: of all tensors that count.
        units: of each group, as it is now.
        fixed: what no width changes.
    """

    def __init__(self, terms: list[Term], units: Mapping[str, int], fixed: float = 0.0) -> None:
        self._units = dict(units)
        self._fixed = fixed
        self._terms: dict[str, list[Term]] = {name: [] for name in units}
        self._all = terms
        for term in terms:
            for name in {name for dimension in term.dimensions for name in dimension.units}:
                self._terms[name].append(term)

    def total(self, widths: ChannelWidths) -> float:
        """The cost at some widths."""
        return self._fixed + sum(self._value(term, widths) for term in self._all)

    def saved(self, widths: ChannelWidths, name: str, width: int) -> float:
        """The saving of narrowing one group."""
        other = {**widths, name: width}
        return sum(
            self._value(term, widths) - self._value(term, other) for term in self._terms[name]
        )

    def _value(self, term: Term, widths: ChannelWidths) -> float:
        return term.coefficient * prod(
            dimension.size
            - sum(each * (self._units[n] - widths[n]) for n, each in dimension.units.items())
            for dimension in term.dimensions
        )


def macs(graph: ChannelGraph) -> ChannelCosts:
    """Multiply-accumulates of one row: those that `count_macs` counts."""
    return _summed(graph.work, graph)


def parameters(model: nn.Module, graph: ChannelGraph) -> ChannelCosts:
    """Parameters of the whole model."""
    return _stored(model, graph, lambda parameter: 1)


def tensor_bytes(model: nn.Module, graph: ChannelGraph) -> ChannelCosts:
    """Bytes of the whole model's parameters."""
    return _stored(model, graph, lambda parameter: parameter.element_size())


def _stored(
    model: nn.Module, graph: ChannelGraph, each: Callable[[nn.Parameter], int]
) -> ChannelCosts:
    """The sizes of all parameters, each element weighted."""
    units: dict[Slot, dict[str, float]] = {}
    for group in graph.groups:
        for place in group.places:
            for slot, index in place.slots(model):
                part = units.setdefault(slot, {})
                part[group.name] = part.get(group.name, 0.0) + len(np.unique(index)) / group.units
    terms = []
    for name, parameter in model.named_parameters():
        dimensions = [Dimension(n, units.get((name, i), {})) for i, n in enumerate(parameter.shape)]
        terms.append(Term(each(parameter), tuple(dimensions)))
    return _summed(terms, graph)


def _summed(terms: Sequence[Term], graph: ChannelGraph) -> ChannelCosts:
    changing = [term for term in terms if any(part.units for part in term.dimensions)]
    fixed = sum(
        term.coefficient * prod(part.size for part in term.dimensions)
        for term in terms
        if not any(part.units for part in term.dimensions)
    )
    return ChannelCosts(changing, {group.name: group.units for group in graph.groups}, fixed)


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


def uniform_channels(
    costs: ChannelCosts,
    allowed: Allowed,
    limit: float,
    dead: Mapping[str, int] | None = None,
) -> Widths:
    """The same share of every group's units, as large as the budget allows.

    Units that do nothing go first: others only where the budget is not met without them.

    Args:
        costs: of widths.
        allowed: widths that each group may have.
        limit: what all may cost.
        dead: by group, how many units do nothing.
    """
    most = {name: max(widths) for name, widths in allowed.items()}
    alive = {name: most[name] - (dead or {}).get(name, 0) for name in most}

    def between(low: Mapping[str, float], high: Mapping[str, float], step: int) -> Widths:
        found = {}
        for name, widths in allowed.items():
            goal = low[name] + step / 1000 * (high[name] - low[name])
            found[name] = min(widths, key=lambda width: (abs(width - goal), width))
        return found

    nothing = dict.fromkeys(most, 0.0)
    if alive != most and costs.total(between(nothing, alive, 1000)) <= limit * _EPSILON:
        return _largest(partial(between, alive, most), costs, limit, 1000)
    return _largest(partial(between, nothing, alive), costs, limit, 1000)


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
        # The last step removes no more than it has to.
        enough = [w for w in errors[name] if w < widths[name]
                  and costs.saved(widths, name, w) * _EPSILON >= need]  # fmt: skip
        widths[name] = max(lower, max(enough, default=lower))
        spent = costs.total(widths)
    return _filled(widths, costs, errors, limit)


def _filled(
    widths: Widths, costs: ChannelCosts, errors: Mapping[str, Mapping[int, float]], limit: float
) -> Widths:
    """Spend the rest of the budget where it helps most."""
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
