"""Shares of batches in an accumulated update, logged parts, and who reads the item count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Counts = Mapping[str, Tensor]
"""By the name of a loss: how many rows, labels, positions or tokens of a batch it averages over."""


class UpdateShares:
    """The share of each batch in a whole update, for each loss.

    A mean of batch means differs from the mean over the update if batches have different counts.
    Each loss of a batch is scaled by its share, so that the sum over the batches equals the loss of
    one large batch. ``normalized_mse`` is only close to it, because it divides by the mean square
    of the teacher's states in each batch.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._totals)

    def start(self, counts: Sequence[Counts], everywhere: Callable[[Tensor], Tensor]) -> None:
        """Begin an update.

        Args:
            counts: of each batch; empty if the update is one batch.
            everywhere: averages a number over the processes.
        """
        self._totals = {
            name: everywhere(torch.stack([part[name] for part in counts]).sum())
            for name in (counts[0] if counts else {})
        }

    def of(self, counts: Counts) -> dict[str, Tensor]:
        """Return the share of a batch by the name of the loss."""
        return {name: counts[name] / total.clamp_min(1) for name, total in self._totals.items()}


class LoggedParts:
    """The parts of the loss since the last log, averaged over updates as ``Trainer`` does."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._since = 0

    def clear(self) -> None:
        """Forget what was added."""
        self._sums = {}

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
        self.clear()
        return taken


# Operations that read or move a tensor without computing with its value.
_MOVES = {"to", "cuda", "cpu", "clone", "detach", "contiguous"}
_READS = {"__get__", "dim", "size", "numel", "is_floating_point", "__repr__", "__format__"}


class ItemCount(Tensor):
    """A number of items that remembers whether a loss has computed with it.

    Attributes:
        reads: not empty once a value was computed with the number.
    """

    reads: list[str]

    @classmethod
    def of(cls, items: Tensor | int) -> ItemCount:
        """Return a number of items that no loss has read yet."""
        counted = torch.as_tensor(items).as_subclass(cls)
        counted.reads = []
        return counted

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call the operation on plain tensors, and note it."""
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        counts = [value for value in args if isinstance(value, ItemCount)]
        if name in _MOVES and counts and isinstance(result, Tensor):
            moved = result.as_subclass(cls)
            moved.reads = counts[0].reads
            return moved
        if name not in _READS:
            for count in counts:
                count.reads.append(name)
        return result
