"""Groups of units, plans and the `Prunable` protocol that heads, neurons and channels share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.quality import interpolated, predictions
from hfcompress.shrinking.report import Amount, Latencies
from hfcompress.shrinking.widths import Allowed, Widths
from hfcompress.utils import ShowProgress


@dataclass
class ShrinkContext:
    """Data that all steps of one `shrink` share.

    Attributes:
        config: how to choose.
        calibration: rows; None where no step needs them.
        dense: the model before anything is removed.
        frozen: returns a copy that later steps do not change (the model itself in a dry run).
        progress: receives stage, count and total.
    """

    config: ShrinkConfig
    calibration: Calibration | None
    dense: nn.Module
    frozen: Callable[[nn.Module], nn.Module]
    progress: ShowProgress
    _reference: tuple[Calibration, list[Tensor]] | None = None

    def reference(self) -> tuple[Calibration, list[Tensor]]:
        """Rows on which predictions are compared, and the dense model's predictions there."""
        if self._reference is None:
            assert self.calibration is not None
            rows = self.calibration.spread(self.config.table_rows)
            self._reference = rows, predictions(self.dense, rows)
        return self._reference


@dataclass(frozen=True)
class UnitGroup:
    """Units of one kind that are removed one by one.

    Attributes:
        name: path of the module that names the group.
        kind: what the units are.
        units: how many there are.
    """

    name: str
    kind: Literal["heads", "neurons", "channels"]
    units: int


@dataclass
class Candidates:
    """The units to keep at each width of each group, and the cost; nothing is changed yet.

    Attributes:
        kept: for each group and allowed width, the units that would be kept.
        scores: for each group a score of each unit, where the method has one.
        errors: for each group and some widths, the measured change of the predictions.
    """

    kept: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, dict[int, float]] = field(default_factory=dict)

    def errors_at(self, allowed: Allowed) -> dict[str, dict[int, float]]:
        """The errors at all allowed widths, interpolated."""
        return {name: interpolated(self.errors[name], widths) for name, widths in allowed.items()}

    def dead_units(self) -> dict[str, int]:
        """For each group with scores, how many of them are exactly 0."""
        return {name: int((score == 0).sum()) for name, score in self.scores.items()}

    def score_lists(self) -> dict[str, list[float]]:
        """The scores as numbers."""
        return {name: score.tolist() for name, score in self.scores.items()}


@dataclass(frozen=True)
class Plan:
    """The number of units that each group keeps.

    Attributes:
        widths: by group.
        candidates: what the widths were chosen from.
    """

    widths: Widths
    candidates: Candidates

    @classmethod
    def unchanged(cls, groups: Sequence[UnitGroup]) -> Plan:
        """The plan that keeps every unit."""
        return cls(
            {group.name: group.units for group in groups},
            Candidates(kept={g.name: {g.units: torch.arange(g.units)} for g in groups}),
        )

    @property
    def keep(self) -> dict[str, Tensor]:
        """For each group the numbers of the units to keep, ascending."""
        return {name: self.candidates.kept[name][width] for name, width in self.widths.items()}

    def error(self, name: str) -> float | None:
        """The estimated error of one group alone; None where no error was measured."""
        if name not in self.candidates.errors:
            return None
        width = self.widths[name]
        return interpolated(self.candidates.errors[name], [width])[width]


class Prunable(Protocol):
    """A model bound to what can be removed from it."""

    @property
    def dropped_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that were removed whole."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report."""

    def groups(self) -> tuple[UnitGroup, ...]:
        """The groups of units as they were before the first plan, in model order."""

    def plan(self, progress: float) -> Plan:
        """Choose widths for the model as it is now, without changing it.

        Args:
            progress: 1 for the budget itself, less for an earlier round.

        Raises:
            ConfigError: the budget is below what can be reached.
        """

    def apply(self, plan: Plan) -> Mapping[str, Tensor]:
        """Remove units from the model in place and repair what is left.

        Returns:
            for each group the units that were kept, of those that the model had before.
        """

    def check(self, kept: Mapping[str, Tensor]) -> None:
        """Run the shrunk model in eval and in train mode.

        Args:
            kept: for each group the units of the dense model that are left.

        Raises:
            TargetError: it fails, or has other outputs than it should.
        """

    def preview(self, plan: Plan) -> nn.Module:
        """A copy of the model in the plan's shapes, not repaired."""

    def macs(self, model: nn.Module, widths: Widths) -> Amount:
        """Multiply-accumulates of the dense model, and of the shrunk one with some widths."""

    def latencies(self, model: nn.Module | None) -> Latencies | None:
        """Predicted and measured latency of the shrunk model (None: not measured)."""
