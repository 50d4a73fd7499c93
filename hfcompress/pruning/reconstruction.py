"""Repairing what pruning broke: weights that best reproduce a layer's outputs, zeros given or not.

A layer's problem is a target W (outputs x inputs) and a matrix H (inputs x inputs, positive
definite): find V with the wanted zeros that makes tr((V - W) H (V - W)') small. With H the second
moment of the inputs this is the mean squared error of the outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfcompress.pruning.patterns import Chooser


def sparsegpt(
    weight: Tensor,
    upper: Tensor,
    drop: int,
    choose: Chooser,
    *,
    block: int = 128,
    group: int = 0,
    output_weight: Tensor | None = None,
) -> Tensor:
    """Prune column by column, spreading each error over the columns to come.

    (Frantar and Alistarh 2023, arXiv 2301.00774.)

    Args:
        weight: W, outputs x inputs.
        upper: from `inverse_upper`, inputs x inputs.
        drop: weights to drop.
        choose: picks what to drop, from the scores of a slice of columns.
        block: columns that are chosen together; a multiple of the pattern's step.
        group: for N:M, choose every M columns with the weights as they are by then.
        output_weight: outputs; how much an error in each output counts in the choice.

    Returns:
        the pruned weight.
    """
    new = weight.float().clone()
    inputs = new.shape[1]
    done = 0
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        share = round(drop * stop / inputs) - done
        part, corner = new[:, start:stop], upper[start:stop, start:stop]
        errors, dropped = _prune_columns(part, corner, share, choose, group, output_weight)
        done += dropped
        new[:, stop:] -= errors @ upper[start:stop, stop:]
    return new.to(weight.dtype)


def _prune_columns(
    part: Tensor,
    upper: Tensor,
    drop: int,
    choose: Chooser,
    group: int,
    output_weight: Tensor | None,
) -> tuple[Tensor, int]:
    """SparseGPT inside one slice of columns, in place; returns the errors and the zeros made."""

    def chosen(columns: slice, number: int) -> Tensor:
        scores = (part[:, columns] / upper.diagonal()[columns]).square()
        if output_weight is not None:
            scores = scores * output_weight[:, None]
        return choose(scores, number)

    width = part.shape[1]
    keep = torch.ones_like(part, dtype=torch.bool) if group else chosen(slice(0, width), drop)
    # Rows of transposed copies are contiguous, and so fast.
    columns = part.T.contiguous()
    errors = torch.empty_like(columns)
    strip = max(group, 16 // group * group if group else 16)
    for column in range(width):
        if group and column % group == 0:
            members = slice(column, column + group)
            part[:, members] = columns[members].T
            keep[:, members] = chosen(members, drop)
        error = columns[column].masked_fill(keep[:, column], 0) / upper[column, column]
        columns[column].masked_fill_(~keep[:, column], 0)
        errors[column] = error
        # Errors reach the rest of a narrow strip at once, and what lies behind it in one product.
        stop = min(column - column % strip + strip, width)
        if column + 1 < stop:
            columns[column + 1 : stop].addr_(upper[column, column + 1 : stop], error, alpha=-1)
        elif stop < width:
            first = column - column % strip
            columns[stop:].addmm_(upper[first:stop, stop:].T, errors[first:stop], alpha=-1)
    part.copy_(columns.T)
    return errors.T, int((~keep).sum())


def least_squares(
    target: Tensor,
    hessian: Tensor,
    keep: Tensor,
    *,
    iterations: int = 40,
    start: Tensor | None = None,
) -> Tensor:
    """The best weights on a given support, by conjugate gradients on all outputs at once.

    Args:
        target: W, outputs x inputs.
        hessian: H, inputs x inputs, positive definite.
        keep: mask, outputs x inputs.
        iterations: at most so many; the diagonal preconditions.
        start: where to start; the masked target by default.

    Returns:
        V, zero where ``keep`` is False.
    """
    diagonal = hessian.diagonal()
    solution = (target if start is None else start) * keep
    residual = ((target - solution) @ hessian) * keep
    scaled = residual / diagonal
    direction = scaled.clone()
    product = (residual * scaled).sum(1, keepdim=True)
    tiny = torch.finfo(product.dtype).tiny
    for _ in range(iterations):
        image = (direction @ hessian) * keep
        step = product / (direction * image).sum(1, keepdim=True).clamp_min(tiny)
        solution = solution + step * direction
        residual = residual - step * image
        scaled = residual / diagonal
        following = (residual * scaled).sum(1, keepdim=True)
        direction = scaled + following / product.clamp_min(tiny) * direction
        product = following
    return solution


def alps_mask(
    target: Tensor,
    hessian: Tensor,
    drop: int,
    choose: Chooser,
    *,
    iterations: int = 60,
    output_weight: Tensor | None = None,
) -> Tensor:
    """A mask by ADMM: one variable reproduces the outputs, the other has the zeros, they agree.

    (Meng et al. 2024, ALPS, arXiv 2406.07831.) H is scaled to a unit diagonal; the penalty rho
    grows faster while the mask still changes much.

    Args:
        target: W, outputs x inputs.
        hessian: H, inputs x inputs, positive definite.
        drop: weights to drop.
        choose: picks what to drop from scores.
        iterations: at most so many; fewer when the mask has settled.
        output_weight: outputs; how much an error in each output counts.
    """
    scale = hessian.diagonal().rsqrt()
    matrix = (hessian * scale[:, None] * scale).float()
    weight = (target / scale).float()
    if output_weight is not None:
        weight = weight * output_weight.clamp_min(1e-12).sqrt()[:, None]
    sparse, dual, image = weight.clone(), torch.zeros_like(weight), weight @ matrix
    rho, keep = 0.1, None
    for step in range(iterations):
        if step % 3 == 0:  # rho has changed
            shifted = matrix.clone()
            shifted.diagonal().add_(rho)
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(shifted))
        free = (image + rho * sparse - dual) @ inverse
        mixed = free + dual / rho
        new = choose(mixed.abs(), drop)
        sparse = mixed * new
        dual = dual + rho * (free - sparse)
        if step % 3 == 2:
            changed = 1.0 if keep is None else float((new ^ keep).sum()) / max(int(new.sum()), 1)
            if changed == 0:
                break
            rho *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
            keep = new
    return new
