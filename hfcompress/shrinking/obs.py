"""Choose the units of an output projection to remove, and refit the others. Tensors only.

Removing units from x and fitting the projection anew costs, for a group of columns J of the
fitted V and with H the second moment of x, V_J' F V_J (H^-1_JJ)^-1 (traced): the optimal brain
surgeon for whole groups. The cheapest is removed, the rest takes over, and so on, from all units
down to none: one sweep gives the choice and the cost at every width.

(Hassibi and Stork 1993; for structures Kurtic et al. 2023, ZipLM, arXiv 2302.04089; the target,
the dense model's output, is that of Park et al. 2023, K-prune, arXiv 2308.03449.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfcompress.calibration.linalg import damped, ridge_target

_AT_ONCE = 1 / 16
"""Largest share of the remaining single-column units removed before all is fitted anew."""
_AT_ONCE_SHARED = 1 / 32
"""The same for channels, whose columns are many."""


def eliminate(
    weight: Tensor,
    gram: Tensor,
    cross: Tensor,
    widths: Sequence[int],
    *,
    size: int,
    damping: float,
    metric: Tensor | None = None,
    at_once: int = 16,
) -> dict[int, Tensor]:
    """The units that are kept at each width.

    Args:
        weight: outputs x (units * size), which the fit stays near.
        gram: H, second moment of the inputs about their mean.
        cross: second moment of wanted outputs and inputs about their means.
        widths: numbers of units asked for.
        size: columns of one unit.
        damping: share of H's mean diagonal that is added to the diagonal.
        metric: R, directions x outputs: errors e count as the squared norm of R e; None counts
            all outputs alike.
        at_once: single-column units that go before all is fitted anew, at most.

    Returns:
        for each width the units' numbers, ascending.
    """
    if not weight.shape[1]:
        return {0: torch.arange(0)}
    fitted, inverse = _fit(weight, gram, cross, damping)
    fitted = fitted if metric is None else metric.to(fitted) @ fitted
    alive = torch.arange(weight.shape[1] // size)
    kept: dict[int, Tensor] = {}
    for width in sorted(set(widths), reverse=True):
        while len(alive) > width:
            number = 1
            if size == 1:
                number = max(1, min(at_once, len(alive) - width, int(len(alive) * _AT_ONCE)))
            units = _costs(fitted, inverse, size).topk(number, largest=False).indices
            stay = torch.ones(len(alive), dtype=torch.bool)
            stay[units] = False
            fitted, inverse = _without(fitted, inverse, stay.repeat_interleave(size))
            alive = alive[stay]
        kept[width] = alive
    return kept


def refit(weight: Tensor, gram: Tensor, cross: Tensor, columns: Tensor, damping: float) -> Tensor:
    """The projection from some inputs alone that comes nearest to the wanted outputs (ridge).

    Args:
        weight, gram, cross, damping: as for `eliminate`.
        columns: inputs that are left.

    Returns:
        outputs x columns left.
    """
    if not len(columns):
        return weight[:, :0]
    small = gram[columns][:, columns]
    matrix, factor, _ = damped(small, damping)
    return ridge_target(weight[:, columns], cross[:, columns], small, matrix, factor)


def _fit(weight: Tensor, gram: Tensor, cross: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The projection from all inputs, and the inverse of the damped Gram matrix, float32."""
    matrix, factor, _ = damped(gram, damping)
    fitted = ridge_target(weight.float(), cross, gram, matrix, factor)
    return fitted, torch.cholesky_inverse(factor).float()


def _costs(fitted: Tensor, inverse: Tensor, size: int) -> Tensor:
    """The squared error that each unit's removal adds."""
    if size == 1:
        return fitted.square().sum(0) / inverse.diagonal().clamp_min(1e-20)
    units = len(inverse) // size
    number = torch.arange(units)
    corners = inverse.view(units, size, units, size)[number, :, number]
    columns = fitted.view(len(fitted), units, size).permute(1, 2, 0)
    taken_over: Tensor = torch.linalg.solve(corners, columns)
    return (taken_over * columns).sum((1, 2))


def _without(fitted: Tensor, inverse: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
    """The fit and the inverse after some columns are removed."""
    gone = (~stay).nonzero()[:, 0]
    share = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
    fitted = (fitted - fitted[:, gone] @ share)[:, stay]
    inverse = (inverse - inverse[:, gone] @ share)[stay][:, stay]
    return fitted, inverse


@dataclass(frozen=True)
class Reader:
    """A layer (or one group of it) that reads units which several layers read.

    Attributes:
        weight: outputs x columns; the first ``units * size`` columns are the units', in order.
        gram: columns x columns, second moment of the inputs.
        size: columns of one unit.
        importance: how much a squared error of its outputs counts.
        metric: as for `eliminate`.
    """

    weight: Tensor
    gram: Tensor
    size: int
    importance: float = 1.0
    metric: Tensor | None = None


def eliminate_shared(
    readers: Sequence[Reader], units: int, widths: Sequence[int], *, damping: float
) -> dict[int, Tensor]:
    """The units that are kept at each width, where several layers read the same units.

    Remove the unit whose removal costs least in all of them together; each makes up for it.

    Args:
        readers: at least one.
        units: how many there are.
        widths: numbers of units asked for, at least 1.
        damping: as for `eliminate`.

    Returns:
        for each width the units' numbers, ascending.
    """
    states = []
    for reader in readers:
        matrix, factor, _ = damped(reader.gram, damping)
        cross = reader.weight.double() @ reader.gram.double()
        fitted = ridge_target(reader.weight.float(), cross, reader.gram, matrix, factor)
        fitted = fitted if reader.metric is None else reader.metric.to(fitted) @ fitted
        states.append((fitted, torch.cholesky_inverse(factor).float()))
    alive = torch.arange(units)
    kept: dict[int, Tensor] = {}
    for width in sorted(set(widths), reverse=True):
        while len(alive) > width:
            costs = torch.zeros(len(alive))
            for reader, (fitted, inverse) in zip(readers, states, strict=True):
                own = len(alive) * reader.size
                part = _costs(fitted[:, :own], inverse[:own, :own], reader.size)
                costs += reader.importance * part
            number = max(1, min(len(alive) - width, int(len(alive) * _AT_ONCE_SHARED)))
            stay = torch.ones(len(alive), dtype=torch.bool)
            stay[costs.topk(number, largest=False).indices] = False
            for index, reader in enumerate(readers):
                columns = stay.repeat_interleave(reader.size)
                fitted, inverse = states[index]
                rest = torch.ones(len(inverse) - len(columns), dtype=torch.bool)
                states[index] = _without(fitted, inverse, torch.cat([columns, rest]))
            alive = alive[stay]
        kept[width] = alive
    return kept
