"""What a batch's losses count when an update has several batches, and how they are logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hfcompress.distillation.layer_losses import HiddenDistance
from hfcompress.distillation.losses import Task

Unit = Literal["rows", "labels", "positions", "tokens"]
"""What a loss is a mean over: rows, rows or tokens with a label, positions of the logits that
count, tokens that are no padding."""


_BY_ROW = ("patience", "attention_transfer")
"""Hidden distances that give one number for each row."""


def units_of(task: Task, hidden_distance: HiddenDistance) -> dict[str, Unit]:
    """What each loss is a mean over, by its name in the logs."""
    return {
        "hard_loss": "labels",
        "soft_loss": "positions",
        "logits_loss": "tokens" if task == "spans" else "positions",
        "hidden_loss": "rows" if hidden_distance in _BY_ROW else "tokens",
        "attention_loss": "tokens",
        "value_loss": "tokens",
    }


def count_units(
    inputs: Mapping[str, Any], labels: Tensor | None, positions: Tensor | None
) -> dict[Unit, Tensor]:
    """How many of each unit a batch has.

    Args:
        inputs: the batch.
        labels: its labels; -100 marks none.
        positions: non-zero where the logits count; None counts rows.
    """
    first = next(value for value in inputs.values() if isinstance(value, Tensor))
    rows = torch.tensor(first.shape[0], device=first.device)
    mask = inputs.get("attention_mask")
    labelled = rows
    if labels is not None and not labels.is_floating_point():
        labelled = (labels != -100).sum()
    return {
        "rows": rows,
        "labels": labelled,
        "positions": rows if positions is None else (positions != 0).sum(),
        "tokens": rows if mask is None else (mask != 0).sum(),
    }


class UpdateShares:
    """The share of a batch's means in the means over a whole update.

    A mean of means is not the mean where batches differ in what they count. Each loss of a batch
    is scaled by its share, so that the sum over the batches of an update is what one large batch
    would give. Only hidden states by ``normalized_mse`` are near it and not equal: that divides by
    the size of the teacher's states in the batch.
    """

    def __init__(self) -> None:
        self._totals: dict[Unit, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._totals)

    def start(
        self, counts: Sequence[Mapping[Unit, Tensor]], everywhere: Callable[[Tensor], Tensor]
    ) -> None:
        """Begin an update.

        Args:
            counts: of each of its batches; none where the update is one batch.
            everywhere: the sum of a number over the processes.
        """
        self._totals = {
            unit: everywhere(torch.stack([part[unit] for part in counts]).sum())
            for unit in (counts[0] if counts else {})
        }

    def of(self, counts: Mapping[Unit, Tensor]) -> dict[Unit, Tensor]:
        """The share of a batch, by what is counted."""
        return {unit: counts[unit] / total.clamp_min(1) for unit, total in self._totals.items()}


class LoggedParts:
    """The parts of a loss between two logs, averaged over the updates as ``Trainer`` does."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._since = 0

    def add(self, parts: Mapping[str, Tensor], step: int) -> None:
        """Add a batch.

        Args:
            parts: each the batch's share in its update.
            step: updates that are done.
        """
        if not self._sums:
            self._since = step
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + part.detach()

    def take(self, step: int, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean of each part since the last log.

        Args:
            step: updates that are done.
            average: the mean of a number over the processes.
        """
        updates = max(1, step - self._since)
        taken = {name: float(average(total)) / updates for name, total in self._sums.items()}
        self._sums = {}
        return taken
