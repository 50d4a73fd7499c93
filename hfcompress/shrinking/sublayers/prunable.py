"""Attention heads, feed-forward neurons and layers as `Prunable`."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from hfcompress.errors import TargetError
from hfcompress.models.sublayers import Sublayer, sublayers
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.outputs import difference, example_rows, runs
from hfcompress.shrinking.plan import Plan, ShrinkContext, UnitGroup
from hfcompress.shrinking.report import Amount, Latencies
from hfcompress.shrinking.sublayers.budget import Budget
from hfcompress.shrinking.sublayers.costs import layer_macs
from hfcompress.shrinking.sublayers.latency_table import with_widths
from hfcompress.shrinking.sublayers.layers import drop_layers
from hfcompress.shrinking.sublayers.repair import with_masks
from hfcompress.shrinking.sublayers.selection import (
    SublayerContext,
    apply_widths,
    find_candidates,
    look_at_importance,
)
from hfcompress.shrinking.widths import Costs, Widths, allowed_widths, optimal, ranked, uniform


class PrunableSublayers:
    """A transformer of a known family; layers are dropped when it is made.

    Args:
        model: changed in place.
        context: with the dense model.

    Raises:
        TargetError: a model without removable units.
        ConfigError: a budget above the dense model, or more layers to keep than there are.
        CalibrationError: a latency without calibration data.

    Attributes:
        dropped_layers, notes: see `Prunable`.
    """

    def __init__(self, model: nn.Module, context: ShrinkContext) -> None:
        config = context.config
        self._model = model
        self._budget = Budget(context.dense, config, context.calibration)
        self.dropped_layers: tuple[int, ...] = ()
        dense = context.dense
        if config.layers is not None:
            self.dropped_layers = drop_layers(model, config.layers, context)
            dense = context.frozen(model)
        self._parts, self.notes = removable_sublayers(model, config)
        self._context = SublayerContext(context, dense)
        look_at_importance(self._parts, self._context)
        self._groups = tuple(UnitGroup(p.name, p.kind, p.units(model)) for p in self._parts)
        self._is_cut = False

    def groups(self) -> tuple[UnitGroup, ...]:
        """See `Prunable`."""
        return self._groups

    def plan(self, progress: float) -> Plan:
        """See `Prunable`."""
        # Before the first cut the model equals the dense one, so that one forward pass does.
        model = self._model if self._is_cut else self._context.dense
        config = self._context.config
        allowed = {
            part.name: allowed_widths(
                part.units(model),
                config.min_heads if part.kind == "heads" else config.min_neurons,
                config.multiple_of if part.kind == "neurons" else 1,
            )
            for part in self._parts
        }
        candidates = find_candidates(model, self._parts, allowed, self._context)

        def choose(costs: Costs) -> Widths:
            if config.resolved_allocation == "optimal":
                return optimal(costs.table, candidates.errors_at(allowed), costs.limit)
            if config.resolved_allocation == "global":
                return ranked(costs.table, candidates.score_lists(), costs.limit)
            return uniform(costs.table, costs.limit)

        return Plan(self._budget.fit(model, self._parts, allowed, choose, progress), candidates)

    def apply(self, plan: Plan) -> dict[str, Tensor]:
        """See `Prunable`."""
        self._is_cut = True
        return apply_widths(self._model, self._parts, plan.widths, plan.candidates, self._context)

    def check(self, kept: Mapping[str, Tensor]) -> None:
        """See `Prunable`: the outputs must be those of the dense model with the units masked."""
        model, context = self._model, self._context
        rows = example_rows(model, context.shared.calibration)
        if rows is None:
            return
        trained = context.config.rounds > 1  # by the caller's recovery
        wide = with_masks(context.dense, model, self._parts, kept, trained)
        # In double precision, if the model can run in it: repaired projections may be large, and
        # their rounding errors then exceed what outputs may differ by. Train mode moves buffers.
        narrow = copy.deepcopy(model)
        if runs(copy.deepcopy(wide).double(), rows):
            wide, narrow = wide.double(), narrow.double()
        reason = difference(wide, narrow, rows)
        if reason is not None:
            raise TargetError(
                f"{type(model).__name__} cannot lose these heads and neurons: without them "
                f"{reason}; write heads: false or neurons: false"
            )

    def preview(self, plan: Plan) -> nn.Module:
        """See `Prunable`."""
        return with_widths(self._model, self._parts, plan.widths)

    def macs(self, model: nn.Module, widths: Widths) -> Amount:
        """See `Prunable`; for one token."""
        return Amount(self._budget.macs, layer_macs(model, sublayers(model), self._budget.length))

    def latencies(self, model: nn.Module | None) -> Latencies | None:
        """See `Prunable`."""
        return self._budget.latencies(model)


def removable_sublayers(
    model: nn.Module, config: ShrinkConfig
) -> tuple[list[Sublayer], tuple[str, ...]]:
    """The sublayers that may lose units, and notes on the others.

    Raises:
        TargetError: an unknown family, or no sublayer may lose units.
    """
    requested = {"heads": config.heads, "neurons": config.neurons}
    if not any(requested.values()):
        raise TargetError(
            f"shrink removes heads and neurons from {type(model).__name__}, not channels; "
            f"write heads: true or neurons: true"
        )
    found = [part for part in sublayers(model) if requested[part.kind]]
    parts = [part for part in found if part.removable]
    if not parts:
        raise TargetError(
            "this family fixes the number of heads in its code, so that none can be removed; "
            "write neurons: true"
        )
    if len(parts) < len(found):
        return parts, ("heads are kept: this family fixes their number in its code",)
    return parts, ()
