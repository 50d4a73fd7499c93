"""What a network costs by the width of its groups of channels.

A convolution costs its outputs times its inputs: widths multiply, where those of heads and
neurons only add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from hfcompress.shrinking.channels.graph import ChannelGraph, groups_in

ChannelWidths = Mapping[str, int]


@dataclass(frozen=True)
class Dimension:
    """A tensor's dimension.

    Attributes:
        size: as it is now.
        units: for each group that has a part of it, how many places each unit takes.
    """

    size: int
    units: dict[str, float]


@dataclass(frozen=True)
class Term:
    """One tensor: a coefficient times the product of its dimensions."""

    coefficient: float
    dimensions: tuple[Dimension, ...]


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
        """What narrowing one group saves."""
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


def macs(model: nn.Module, graph: ChannelGraph) -> ChannelCosts:
    """Multiply-accumulates of convolutions and Linears for one row."""
    return _costs(model, graph, "macs")


def parameters(model: nn.Module, graph: ChannelGraph) -> ChannelCosts:
    """Parameters of the whole model."""
    return _costs(model, graph, "parameters")


def tensor_bytes(model: nn.Module, graph: ChannelGraph) -> ChannelCosts:
    """Bytes of the whole model's parameters."""
    return _costs(model, graph, "bytes")


def _costs(model: nn.Module, graph: ChannelGraph, kind: str) -> ChannelCosts:
    where = _where(model, graph)
    terms, fixed = [], 0.0
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        if kind == "macs" and not (last == "weight" and owner in graph.positions):
            continue
        factor = {"macs": graph.positions.get(owner, 0.0), "bytes": parameter.element_size()}
        coefficient = factor.get(kind, 1.0)
        sizes = list(parameter.shape)
        dimensions = tuple(
            Dimension(size, where.get((name, number), {})) for number, size in enumerate(sizes)
        )
        if any(dimension.units for dimension in dimensions):
            terms.append(Term(coefficient, dimensions))
        else:
            fixed += coefficient * parameter.numel()
    return ChannelCosts(terms, {group.name: group.units for group in graph.groups}, fixed)


def _where(model: nn.Module, graph: ChannelGraph) -> dict[tuple[str, int], dict[str, float]]:
    """For each parameter's dimension the groups that have a part of it, and a unit's places."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for group in graph.groups:
        for place in group.places:
            each = len(place.index) / group.units
            if place.side == "parameter":
                keys = [(place.module, place.dimension)]
            elif place.side == "inputs":
                each /= groups_in(model.get_submodule(place.module))
                keys = [(f"{place.module}.weight", 1)]
            else:
                module: Any = model.get_submodule(place.module)
                keys = [(f"{place.module}.{name}", 0) for name in module._parameters]
            for key in keys:
                part = found.setdefault(key, {})
                part[group.name] = part.get(group.name, 0.0) + each
    return found
