"""Weights of batches in an accumulated update, and the logged parts of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from hfcompress.distillation.layer_losses import HiddenDistance
from hfcompress.distillation.losses import Task
from hfcompress.distillation.teacher_outputs import Inputs

Unit = Literal["rows", "labels", "positions", "tokens"]
"""What a loss is averaged over: rows, labels that are not -100, unmasked positions of the logits,
tokens without padding."""

_BY_ROW = ("patience", "attention_transfer")
"""Hidden distances that are averaged over rows."""


def units_of(task: Task, hidden_distance: HiddenDistance) -> dict[str, Unit]:
    """Return what each loss is averaged over, by its name in the logs."""
    return {
        "hard_loss": "labels",
        "soft_loss": "positions",
        "logits_loss": "tokens" if task == "spans" else "positions",
        "hidden_loss": "rows" if hidden_distance in _BY_ROW else "tokens",
        "attention_loss": "tokens",
        "value_loss": "tokens",
    }


def count_units(
    inputs: Inputs, labels: Tensor | None, positions: Tensor | None
) -> dict[Unit, Tensor]:
    """Return how many of each unit a batch has.

    Args:
        inputs: the batch.
        labels: its labels; -100 means "no label".
        positions: non-zero where logits count; None counts rows.
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
    """The share of each batch in the units of a whole update.

    A mean of batch means differs from the mean over the update if batches have different counts.
    Each loss of a batch is scaled by its share, so that the sum over the batches equals the loss of
    one large batch. ``normalized_mse`` is only close to it, because it divides by the mean square
    of the teacher's states in each batch.
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
            counts: units of each batch; empty if the update is one batch.
            everywhere: sums a number over the processes.
        """
        self._totals = {
            unit: everywhere(torch.stack([part[unit] for part in counts]).sum())
            for unit in (counts[0] if counts else {})
        }

    def of(self, counts: Mapping[Unit, Tensor]) -> dict[Unit, Tensor]:
        """Return the share of a batch by unit."""
        return {unit: counts[unit] / total.clamp_min(1) for unit, total in self._totals.items()}


class LoggedParts:
    """The parts of the loss since the last log, averaged over updates as ``Trainer`` does."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._since = 0

    def add(self, parts: Mapping[str, Tensor], step: int) -> None:
        """Add a batch.

        Args:
            parts: losses, scaled by the batch's share in its update.
            step: finished updates.
        """
        if not self._sums:
            self._since = step
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + part.detach()

    def take(self, step: int, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the mean of each part since the last log, and reset.

        Args:
            step: finished updates.
            average: averages a number over the processes.
        """
        updates = max(1, step - self._since)
        taken = {name: float(average(total)) / updates for name, total in self._sums.items()}
        self._sums = {}
        return taken
