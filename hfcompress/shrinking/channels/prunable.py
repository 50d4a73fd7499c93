"""Channels of convolutional networks as `Prunable`."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from hfcompress.errors import CalibrationError, TargetError
from hfcompress.shrinking.channels.budget import ChannelBudget, allowed_channels
from hfcompress.shrinking.channels.costs import (
    ChannelCosts,
    least_change,
    macs,
    ranked_channels,
    uniform_channels,
)
from hfcompress.shrinking.channels.graph import trace
from hfcompress.shrinking.channels.proof import check_cut, cuttable
from hfcompress.shrinking.channels.repair import estimate_batch_norms, repair_channels
from hfcompress.shrinking.channels.selection import find_channel_candidates
from hfcompress.shrinking.channels.surgery import cut
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.outputs import OTHER_OUTPUTS, difference, example_rows
from hfcompress.shrinking.plan import Plan, ShrinkContext, UnitGroup
from hfcompress.shrinking.report import Amount, Latencies
from hfcompress.shrinking.widths import Widths


class PrunableChannels:
    """A network with convolutions.

    Args:
        model: changed in place.
        context: with the dense model.

    Raises:
        ModelError: the model cannot be traced.
        TargetError: no channel can be removed.
        ConfigError: a budget above the dense model.
        CalibrationError: no row that gives the inputs.

    Attributes:
        dropped_layers, notes: see `Prunable`.
    """

    def __init__(self, model: nn.Module, context: ShrinkContext) -> None:
        self.dropped_layers: tuple[int, ...] = ()
        self._model = model
        self._context = context
        rows = example_rows(model, context.calibration)
        if rows is None:
            raise CalibrationError(
                f"rows are missing, and the image size of {type(model).__name__} is not known; "
                f"pass Calibration(batches) to shrink"
            )
        self._example = rows
        context.progress("trying cuts", 0, 1)
        graph, self._choices, reasons = cuttable(model, self._example)
        self._kept_whole = set(reasons)
        self.notes = tuple(_note(name, reason) for name, reason in reasons.items())
        self._dense_graph = self._graph = graph
        self._costs = macs(graph)
        self._groups = tuple(UnitGroup(g.name, "channels", g.units) for g in self._graph.groups)
        self._budget = ChannelBudget(
            context.dense, self._graph, context.config, context.calibration
        )
        self._outputs: dict[str, Tensor] = {}  # of the dense layer, those that are left

    def groups(self) -> tuple[UnitGroup, ...]:
        """See `Prunable`."""
        return self._groups

    def plan(self, progress: float) -> Plan:
        """See `Prunable`."""
        config, model = self._context.config, self._model
        if self._outputs:
            found = trace(model, self._example, self._choices)
            self._graph = found.without(list(self._kept_whole))
        graph = self._graph
        allowed = allowed_channels(model, graph, config)
        candidates = find_channel_candidates(model, graph, allowed, self._context)

        def choose(costs: ChannelCosts, limit: float) -> Widths:
            if config.resolved_allocation == "optimal":
                return least_change(costs, candidates.errors_at(allowed), limit)
            if config.resolved_allocation == "global":
                return ranked_channels(costs, allowed, candidates.score_lists(), limit)
            return uniform_channels(costs, allowed, limit, candidates.dead_units())

        plan = Plan(self._budget.fit(model, graph, allowed, choose, progress), candidates)
        while (reasons := self._unproved(plan)) is not None:
            for name, reason in reasons.items():
                full = allowed[name][-1]
                allowed[name] = [full]
                self.notes += (_note(name, reason),)
            plan = Plan(self._budget.fit(model, graph, allowed, choose, progress), candidates)
        return plan

    def _unproved(self, plan: Plan) -> dict[str, str] | None:
        """The groups that cannot be cut as planned, and why; None where all can.

        Raises:
            TargetError: each can be cut alone, and not all together.
        """
        model, keep = self._model, plan.keep
        narrowed = [g for g in self._graph.groups if len(keep[g.name]) < g.units]
        together = check_cut(model, narrowed, keep, self._example)
        if together is None:
            return None
        alone = {g.name: check_cut(model, [g], keep, self._example) for g in narrowed}
        reasons = {name: reason for name, reason in alone.items() if reason is not None}
        if not reasons:
            raise TargetError(
                f"{type(model).__name__} cannot lose these channels together: without them "
                f"{together}; write another budget"
            )
        return reasons

    def apply(self, plan: Plan) -> dict[str, Tensor]:
        """See `Prunable`."""
        keep = plan.keep
        stays = cut(self._model, self._graph.groups, keep)
        for name in self._graph.layers:
            left = stays.get((f"{name}.weight", 0))
            if left is not None:
                outputs = self._outputs
                outputs[name] = outputs[name][left] if name in outputs else left
        self._repair()
        return keep

    def _repair(self) -> None:
        """Fit what is left to the dense model, and estimate batch norms, as the config asks."""
        context, config = self._context, self._context.config
        if config.resolved_repair != "none":
            repair_channels(self._model, self._dense_graph, self._outputs, context)
        if config.resolved_batch_norms == "estimate":
            assert context.calibration is not None
            context.progress("batch norms", 0, 1)
            estimate_batch_norms(self._model, context.calibration)

    def check(self, kept: Mapping[str, Tensor]) -> None:
        """See `Prunable`; that a cut gives what masks give is proved before each."""
        # Copies: train mode moves the statistics of batch norms.
        dense, small = copy.deepcopy(self._context.dense), copy.deepcopy(self._model)
        reason = difference(dense, small, self._example)
        if reason is not None and reason != OTHER_OUTPUTS:
            raise TargetError(
                f"{type(small).__name__} cannot be shrunk with these settings: afterwards {reason}"
            )

    def preview(self, plan: Plan) -> nn.Module:
        """See `Prunable`."""
        narrow = copy.deepcopy(self._model)
        cut(narrow, self._graph.groups, plan.keep)
        return narrow

    def macs(self, model: nn.Module, widths: Widths) -> Amount:
        """See `Prunable`; for one row, those that `count_macs` counts."""
        before = {group.name: group.units for group in self._groups}
        return Amount(self._costs.total(before), self._costs.total(widths))

    def latencies(self, model: nn.Module | None) -> Latencies | None:
        """See `Prunable`."""
        return self._budget.latencies(model)


def _note(name: str, reason: str) -> str:
    return f"{name} keeps all of its channels: without some of them {reason}"


def check_channels(model: nn.Module, config: ShrinkConfig) -> None:
    """Refuse a config that removes something other than channels.

    Raises:
        TargetError: ``channels: false``, or a number of layers.
    """
    if not config.channels:
        raise TargetError(
            f"shrink removes only channels from {type(model).__name__}, not heads or neurons; "
            f"write channels: true"
        )
    if config.layers is not None:
        raise TargetError(
            f"whole layers are dropped from transformers only, not from {type(model).__name__}; "
            f"write a budget such as macs: 0.5"
        )
