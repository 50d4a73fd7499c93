"""A budget of any kind: which widths fit it, by arithmetic or by the clock of this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.hooks import evaluating, recorded_calls
from hfcompress.errors import ConfigError
from hfcompress.models.architectures import blocks
from hfcompress.models.sublayers import Sublayer, sublayers
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.latency import TimedBudget
from hfcompress.shrinking.sublayers.costs import layer_macs, macs_costs, size_costs
from hfcompress.shrinking.sublayers.latency_table import time_table
from hfcompress.shrinking.sublayers.latency_table import with_widths as narrowed
from hfcompress.shrinking.widths import Allowed, Costs, Widths, check_budget, total

Choose = Callable[[Costs], Widths]
DEFAULT_LENGTH = 128
"""Tokens that are counted where nothing says how long rows are."""
_CLOSE = 0.02
_TRIES = 5
_SECONDS = 4.0
"""Seconds of timing for two models, about."""


class Budget(TimedBudget):
    """The budget of a config, for a dense model.

    Args:
        dense: not changed.
        config: which budget.
        calibration: for the length that is counted or timed.

    Raises:
        ConfigError: a budget above the dense model.
        CalibrationError: a latency without calibration data.
    """

    def __init__(
        self, dense: nn.Module, config: ShrinkConfig, calibration: Calibration | None
    ) -> None:
        super().__init__(dense, config, _SECONDS)
        self.length = config.length or mean_length(dense, calibration)
        self.macs = layer_macs(dense, sublayers(dense), self.length)
        if self.is_timed:
            self.take_inputs(calibration, round(self.length))
            self._times = time_table(dense, sublayers(dense), self._inputs, config)
            self.latency = self._times.dense
            if config.latency is not None and config.latency > self.latency:
                raise ConfigError(
                    f"the budget of {config.latency:.3g} ms is above the dense model, which takes "
                    f"{self.latency:.3g} ms here; write less"
                )

    def fit(
        self,
        model: nn.Module,
        parts: Sequence[Sublayer],
        allowed: Allowed,
        choose: Choose,
        progress: float,
    ) -> Widths:
        """The widths that fit, for a part of the way.

        Args:
            model: as it is now.
            parts: sublayers that may lose units.
            allowed: widths that each may have.
            choose: the widths for some costs.
            progress: 1 for the budget itself; less for a round before.

        Raises:
            ConfigError: the budget is below what can be reached; the least is named.
        """
        if self.latency is not None:
            return self._fit_latency(model, parts, allowed, choose, progress)
        if self.config.macs is not None:
            goal = self.macs * self.config.macs**progress
            costs = macs_costs(model, parts, allowed, self.length, goal)
        else:
            costs = size_costs(model, self._dense, parts, allowed, self.config, progress)
        check_budget(costs)
        return choose(costs)

    def _fit_latency(
        self,
        model: nn.Module,
        parts: Sequence[Sublayer],
        allowed: Allowed,
        choose: Choose,
        progress: float,
    ) -> Widths:
        """Widths by the table; then they are built and timed, and the goal is moved by what the
        table got wrong, until it fits."""
        assert self.latency is not None
        dense = self.latency
        wish = self.config.latency or dense / cast(float, self.config.speedup)
        goal = wanted = dense * (wish / dense) ** progress
        best: tuple[float, Widths] | None = None
        for _ in range(_TRIES):
            costs = self._latency_costs(model, parts, allowed, goal)
            check_budget(costs)
            widths = choose(costs)
            now, took = self.measure(narrowed(model, parts, widths))
            took *= 1.0 if self.config.latency else dense / now
            if best is None or abs(took - wanted) < abs(best[0] - wanted):
                best = took, widths
                self.predicted = took
            if abs(took / wanted - 1) < _CLOSE or total(costs.table, widths) == costs.most:
                break
            goal *= wanted / took
        assert best is not None
        return best[1]

    def _latency_costs(
        self, model: nn.Module, parts: Sequence[Sublayer], allowed: Allowed, goal: float
    ) -> Costs:
        times = self._times
        table = {
            part.name: {width: times.cost(part.kind, width) for width in allowed[part.name]}
            for part in parts
        }
        inside = {part.name for part in parts}
        fixed = times.empty + sum(
            times.cost(part.kind, part.units(model))
            for part in sublayers(model)
            if part.name not in inside
        )
        return Costs(table, goal - fixed, fixed, "ms")


def mean_length(model: nn.Module, calibration: Calibration | None) -> float:
    """Real tokens of a row in the layers, the mean over the calibration rows.

    Args:
        model: run on one batch where rows have no mask (images).
        calibration: None gives `DEFAULT_LENGTH`.
    """
    if calibration is None:
        return float(DEFAULT_LENGTH)
    masks = [calibration.tokens(index) for index in range(len(calibration.batches))]
    if all(mask is not None for mask in masks):
        found = [mask.sum(1) for mask in masks if mask is not None]
        return float(sum(int(mask.sum()) for mask in found) / sum(len(mask) for mask in found))
    with evaluating(model), recorded_calls(blocks(model)) as calls:
        calibration.run(model, 0)
    states: Tensor = next(iter(calls.values()))[0][0]
    return float(states.shape[1])
