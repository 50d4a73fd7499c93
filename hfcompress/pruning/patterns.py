"""Which zeros a layer may have: anywhere, N of every M kept, or whole blocks. Tensors only.

A `Chooser` is a rule that turns scores and a number into a mask; every method takes one, so that
each method works with each pattern.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hfcompress.pruning.masks import global_masks, layer_mask

Chooser = Callable[[Tensor, int], Tensor]
"""(scores outputs x inputs, number to drop) -> mask, True where a weight is kept."""


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern.

    Attributes:
        keep, group: N and M of ``"N:M"``: N of every M consecutive inputs are kept.
        rows, columns: R and C of ``"RxC"``: blocks of R outputs and C inputs are zero as a whole.
    """

    keep: int = 0
    group: int = 0
    rows: int = 1
    columns: int = 1

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``"unstructured"``, ``"2:4"`` or ``"16x1"``.

        Raises:
            ValueError: anything else, or N not between 1 and M - 1.
        """
        if text == "unstructured":
            return cls()
        if found := re.fullmatch(r"(\d+):(\d+)", text):
            keep, group = int(found[1]), int(found[2])
            if 0 < keep < group:
                return cls(keep=keep, group=group)
            raise ValueError(f"N:M keeps N of every M, so 0 < N < M must hold, not {text!r}")
        found = re.fullmatch(r"(\d+)x(\d+)", text)
        if found and int(found[1]) and int(found[2]):
            return cls(rows=int(found[1]), columns=int(found[2]))
        raise ValueError(
            f"must be 'unstructured', N:M such as '2:4' or RxC such as '16x1', not {text!r}"
        )

    @property
    def unstructured(self) -> bool:
        """Zeros may be anywhere."""
        return not self.group and self.rows == self.columns == 1

    @property
    def step(self) -> int:
        """A method that works on slices of columns must cut at multiples of this."""
        return self.group or self.columns

    def fits(self, outputs: int, inputs: int) -> bool:
        """Whether a layer has at least one whole group or block."""
        return inputs >= self.step and outputs >= self.rows

    def dropped(self, outputs: int, inputs: int, sparsity: float) -> int:
        """How many weights are to be zero in a layer: fixed by N:M, else by the sparsity."""
        if not self.group:
            return round(sparsity * outputs * inputs)
        rest = inputs % self.group
        return outputs * (inputs - inputs // self.group * self.keep - self.kept_of(rest))

    def kept_of(self, inputs: int) -> int:
        """How many of the last, incomplete group are kept: the same share, rounded up."""
        return -(-inputs * self.keep // self.group)

    def chooser(self, by_row: bool = False) -> Chooser:
        """The rule for one layer.

        Args:
            by_row: weights compete within their output only (unstructured).
        """
        if self.group:
            return lambda scores, drop: n_of_m_mask(scores, self.keep, self.group)
        if not self.unstructured:
            return lambda scores, drop: block_masks([scores], drop, self.rows, self.columns)[0]
        return row_mask if by_row else layer_mask

    def global_masks(self, scores: Sequence[Tensor], drop: int) -> list[Tensor]:
        """One threshold for several layers (not with N:M, which fixes each layer's number)."""
        if self.unstructured:
            return global_masks(scores, drop)
        return block_masks(scores, drop, self.rows, self.columns)


def row_mask(scores: Tensor, drop: int) -> Tensor:
    """Drop the lowest scores of each row: the same number in each, one more in the first rows.

    Args:
        scores: outputs x inputs.
        drop: how many in all.
    """
    if not len(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    each, more = divmod(drop, len(scores))
    parts = (_row_mask(scores[:more], each + 1), _row_mask(scores[more:], each))
    return torch.cat([part for part in parts if len(part)])


def n_of_m_mask(scores: Tensor, keep: int, group: int) -> Tensor:
    """Keep the ``keep`` highest scores of every ``group`` consecutive inputs.

    If the inputs are not a multiple of ``group``, the rest keeps the same share, rounded up.

    Args:
        scores: outputs x inputs.
        keep: N.
        group: M.
    """
    rows, inputs = scores.shape
    whole = inputs // group * group
    mask = torch.ones_like(scores, dtype=torch.bool)
    grouped = scores[:, :whole].reshape(-1, group)
    mask[:, :whole] = row_mask(grouped, len(grouped) * (group - keep)).view(rows, whole)
    rest = inputs - whole
    if rest:
        kept = -(-rest * keep // group)
        mask[:, whole:] = row_mask(scores[:, whole:], rows * (rest - kept))
    return mask


def block_masks(scores: Sequence[Tensor], drop: int, rows: int, columns: int) -> list[Tensor]:
    """Drop whole blocks, those with the lowest sums, of all matrices together.

    Args:
        scores: outputs x inputs each; blocks at the lower and right edge may be incomplete.
        drop: weights to drop; whole blocks are dropped to come as near as possible.
        rows, columns: outputs and inputs of a block.
    """
    grids = [_block_sums(score, rows, columns) for score in scores]
    sizes = [_block_sums(torch.ones_like(score), rows, columns) for score in scores]
    order = torch.cat([grid.flatten() for grid in grids]).argsort(stable=True)
    dropped = torch.cat([size.flatten() for size in sizes])[order].cumsum(0)
    near = torch.cat([dropped.new_zeros(1), dropped]).sub(drop).abs().argmin()
    keep = torch.ones(len(order), dtype=torch.bool, device=order.device)
    keep[order[: int(near)]] = False
    masks, start = [], 0
    for score, grid in zip(scores, grids, strict=True):
        blocks = keep[start : start + grid.numel()].view(grid.shape)
        start += grid.numel()
        full = blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        masks.append(full[: score.shape[0], : score.shape[1]].contiguous())
    return masks


def _block_sums(scores: Tensor, rows: int, columns: int) -> Tensor:
    down, right = -scores.shape[0] % rows, -scores.shape[1] % columns
    padded = torch.nn.functional.pad(scores.double(), (0, right, 0, down))
    high, wide = padded.shape
    return padded.view(high // rows, rows, wide // columns, columns).sum((1, 3))


def _row_mask(scores: Tensor, drop: int) -> Tensor:
    if not drop or not len(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    array = (
        scores.detach().cpu().float().numpy()
        if scores.dtype != torch.float64
        else scores.cpu().numpy()
    )
    threshold = np.partition(array, drop - 1, axis=1)[:, drop - 1 : drop]
    keep = array > threshold
    # Rows with ties at the threshold: drop the first of them, as everywhere.
    for row in np.flatnonzero(np.count_nonzero(keep, axis=1) != array.shape[1] - drop):
        equal = np.flatnonzero(array[row] == threshold[row])
        ties = drop - np.count_nonzero(array[row] < threshold[row])
        keep[row, equal[ties:]] = True
    return torch.from_numpy(keep).to(scores.device)
