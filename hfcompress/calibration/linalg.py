"""Damping, inversion and ridge targets of Gram matrices (torch only)."""

from __future__ import annotations

import torch
from torch import Tensor


def damped(gram: Tensor, damping: float) -> tuple[Tensor, Tensor, float]:
    """A Gram matrix made safely invertible, and its Cholesky factor.

    Args:
        gram: inputs x inputs, positive semidefinite.
        damping: share of the mean diagonal that is added to the diagonal; where that is not
            enough it is raised tenfold until the factorisation succeeds.

    Returns:
        the damped matrix and its lower Cholesky factor, both float64, and the share added.

    Raises:
        ValueError: the matrix holds NaN or infinity.
    """
    factor, share = _factored(gram, damping)
    matrix = gram.to(torch.float64, copy=True)
    matrix.diagonal().add_(share * _scale(gram))
    return matrix, factor, share


def _factored(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """The Cholesky factor of a damped Gram matrix, and the share added."""
    if not bool(torch.isfinite(gram).all()):
        raise ValueError("the Gram matrix holds NaN or infinite values")
    scale, share = _scale(gram), damping
    info = torch.empty((), dtype=torch.int32, device=gram.device)
    while True:
        factor = gram.to(torch.float64, copy=True)
        factor.diagonal().add_(share * scale)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        # float32 kernels follow, so a matrix that float32 cannot invert counts as singular.
        smallest = factor.diagonal().min() ** 2
        if not info and smallest > torch.finfo(torch.float32).eps * scale:
            return factor, share
        share = max(share * 10, 1e-6)


def _scale(gram: Tensor) -> Tensor:
    return gram.diagonal().double().mean().clamp_min(torch.finfo(torch.float32).tiny)


def ridge_target(
    weight: Tensor, cross: Tensor, gram: Tensor, damped_gram: Tensor, factor: Tensor
) -> Tensor:
    """The dense weight whose outputs come nearest to given ones, held near the old weight.

    Minimises E(y - W x)^2 + damping (W - W_old)^2, whose solution is
    (C + damping W_old) (H + damping)^-1.

    Args:
        weight: W_old, outputs x inputs.
        cross: C = E y x', outputs x inputs.
        gram: H = E x x', inputs x inputs.
        damped_gram, factor: from `damped`.
    """
    damping = (damped_gram.diagonal() - gram.double().diagonal()).mean()
    right = cross.double() + damping * weight.double()
    return torch.cholesky_solve(right.T, factor).T.to(weight.dtype)


def inverse_upper(factor: Tensor) -> Tensor:
    """U with U'U = H^-1, upper triangular, by which `sparsegpt` spreads errors.

    Args:
        factor: lower Cholesky factor of the damped H.

    Returns:
        inputs x inputs, float32.
    """
    return _inverse_upper_(factor.clone())


def damped_inverse_upper(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """`inverse_upper` of a `damped` Gram matrix, and the share added, in little memory."""
    factor, share = _factored(gram, damping)
    return _inverse_upper_(factor), share


def _inverse_upper_(factor: Tensor) -> Tensor:
    """`inverse_upper` in place of the factor: these matrices are the largest of all."""
    torch.cholesky_inverse(factor, out=factor)
    torch.linalg.cholesky(factor, upper=True, out=factor)
    return factor.float()
