"""A budget of any kind for channels: by arithmetic, or by the clock of this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import nn

from hfcompress.calibration.batches import Calibration
from hfcompress.errors import ConfigError
from hfcompress.shrinking.channels.costs import (
    ChannelCosts,
    check_channel_budget,
    macs,
    parameters,
    tensor_bytes,
)
from hfcompress.shrinking.channels.groups import ChannelGraph
from hfcompress.shrinking.channels.sides import groups_in
from hfcompress.shrinking.channels.surgery import cut
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.latency import TimedBudget
from hfcompress.shrinking.widths import Widths, allowed_widths

Choose = Callable[[ChannelCosts, float], Widths]
_CLOSE = 0.03
_TRIES = 6
_SECONDS = 2.0
"""Seconds of timing for two models, about."""


class ChannelBudget(TimedBudget):
    """The budget of a config, for a dense network.

    Args:
        dense: not changed.
        graph: from `trace` of it.
        config: which budget.
        calibration: for the images that are timed.

    Raises:
        ConfigError: a budget above the dense model.
        CalibrationError: a latency without calibration data.
    """

    def __init__(
        self,
        dense: nn.Module,
        graph: ChannelGraph,
        config: ShrinkConfig,
        calibration: Calibration | None,
    ) -> None:
        super().__init__(dense, config, _SECONDS)
        self._unit = {"parameters": "parameters", "bytes": "bytes"}.get(
            config.budget or "", "multiply-accumulates for each row"
        )
        self._before = _whole(self._costs(dense, graph), graph)
        if self.is_timed:
            self.take_inputs(calibration, None)
            self.latency, _ = self.measure(dense)
            self._refuse_above(config.latency, self.latency, "ms", "takes {:.3g} ms here")
        else:
            wish = config.bytes if config.bytes is not None else config.parameters
            self._refuse_above(wish, self._before, self._unit, "has {:,.0f}")

    def _costs(self, model: nn.Module, graph: ChannelGraph) -> ChannelCosts:
        if self.config.budget == "parameters":
            return parameters(model, graph)
        return tensor_bytes(model, graph) if self.config.budget == "bytes" else macs(graph)

    def _refuse_above(self, wish: float | None, dense: float, unit: str, has: str) -> None:
        if wish is not None and wish > dense:
            raise ConfigError(
                f"the budget of {wish:,} {unit} is above the dense model, which "
                f"{has.format(dense)}; write less"
            )

    def fit(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        allowed: Mapping[str, Sequence[int]],
        choose: Choose,
        progress: float,
    ) -> Widths:
        """The widths that fit, for a part of the way.

        Args:
            model: as it is now.
            graph: from `trace` of it.
            allowed: widths that each group may have.
            choose: the widths for some costs and a limit.
            progress: 1 for the budget itself; less for a round before.

        Raises:
            ConfigError: the budget is below what can be reached; the least is named.
        """
        costs = self._costs(model, graph)
        if self.latency is not None:
            return self._fit_latency(model, graph, allowed, choose, costs, progress)
        share = self.config.macs
        if share is None:
            wish = self.config.bytes if self.config.bytes is not None else self.config.parameters
            share = cast(int, wish) / self._before
        limit = self._before * share**progress
        check_channel_budget(costs, allowed, limit, self._unit)
        return choose(costs, limit)

    def _fit_latency(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        allowed: Mapping[str, Sequence[int]],
        choose: Choose,
        costs: ChannelCosts,
        progress: float,
    ) -> Widths:
        """Widths by multiply-accumulates, whose number is moved until the clock agrees."""
        assert self.latency is not None
        wish = self.config.latency or self.latency / cast(float, self.config.speedup)
        wanted = self.latency * (wish / self.latency) ** progress
        least = costs.total({name: min(widths) for name, widths in allowed.items()})
        low, high = least, costs.total({name: max(widths) for name, widths in allowed.items()})
        narrowest = {name: min(widths) for name, widths in allowed.items()}
        fastest = self._took(model, graph, narrowest)
        if fastest > wanted * (1 + _CLOSE):
            raise ConfigError(
                f"the budget of {wanted:.3g} ms is below what removing channels can reach here; "
                f"the least is {fastest:.3g} ms"
            )
        best, self.predicted = narrowest, fastest
        limit = low + (high - low) * (wanted - fastest) / max(self.latency - fastest, 1e-9)
        for _ in range(_TRIES):
            widths = choose(costs, min(max(limit, least), high))
            took = self._took(model, graph, widths)
            if abs(took - wanted) < abs(self.predicted - wanted):
                best, self.predicted = widths, took
            if abs(took / wanted - 1) < _CLOSE:
                break
            low, high = (low, limit) if took > wanted else (limit, high)
            limit = (low + high) / 2
        return best

    def _took(self, model: nn.Module, graph: ChannelGraph, widths: Widths) -> float:
        narrow = copy.deepcopy(model)
        cut(narrow, graph.groups, {name: torch.arange(width) for name, width in widths.items()})
        now, took = self.measure(narrow)
        assert self.latency is not None
        return took if self.config.latency else took * self.latency / now


def allowed_channels(
    model: nn.Module, graph: ChannelGraph, config: ShrinkConfig
) -> dict[str, list[int]]:
    """Widths that each group may have, in units; at least one always stays."""
    found = {}
    for group in graph.groups:
        each = max(
            (
                groups_in(model.get_submodule(place.module))
                for place in group.places
                if place.side != "parameter"
            ),
            default=1,
        )
        multiple = max(1, -(-config.multiple_of // each))
        least = min(max(1, -(-config.min_channels // each)), group.units)
        found[group.name] = allowed_widths(group.units, least, multiple, most=_MOST)
    return found


_MOST = 32
"""Widths of one group that are looked at, at most about."""


def _whole(costs: ChannelCosts, graph: ChannelGraph) -> float:
    return costs.total({group.name: group.units for group in graph.groups})
