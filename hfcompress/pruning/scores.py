"""How important each weight is: tensors in, scores of the same shape out; low scores are dropped.

W is outputs x inputs. Statistics of inputs are taken over real tokens only (no padding).
"""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """abs(W) (Han et al. 2015, "Learning both weights and connections")."""
    return weight.abs()


def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1), but zero where the weight already is: the floor for every method."""
    noise = torch.rand(weight.shape, generator=generator, dtype=torch.float32)
    return noise.to(weight.device) * (weight != 0)


def lamp(weight: Tensor) -> Tensor:
    """w^2 / sum of the squares of all weights in the layer that are not smaller.

    The largest weight of each layer scores 1, so that one global threshold never empties a layer
    (Lee et al. 2021, arXiv 2010.07611).
    """
    squares = weight.flatten().double().square()
    order = squares.argsort(stable=True)
    ascending = squares[order]
    not_smaller = ascending.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = ascending / not_smaller.clamp_min(torch.finfo(torch.float64).tiny)
    return scores.view(weight.shape)


def wanda(weight: Tensor, norm: Tensor) -> Tensor:
    """abs(W_ij) * norm(X_j) (Sun et al. 2024, arXiv 2306.11695).

    Args:
        weight: outputs x inputs.
        norm: inputs; the root mean square of each input over the tokens.
    """
    return weight.abs() * norm


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """E abs(w g): the first-order change of the loss (Molchanov et al. 2017, arXiv 1611.06440).

    Args:
        weight: outputs x inputs.
        gradient: the mean over examples of the loss's absolute gradient.
    """
    return weight.abs() * gradient


def fisher(weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """w^2 E[g^2] / 2: the second-order change of the loss, with the Fisher's diagonal.

    (Theis et al. 2018, arXiv 1801.05787; LeCun et al. 1989, "Optimal brain damage".)

    Args:
        weight: outputs x inputs.
        squared_gradient: the mean over examples of the squared gradient.
    """
    return weight.square() * squared_gradient / 2


def surgeon(weight: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """w^2 / (2 [F^-1]_ii): the loss after the other weights have made up for it.

    (Hassibi and Stork 1992, "Optimal brain surgeon".)

    Args:
        weight: outputs x inputs.
        inverse_diagonal: broadcasts to the weight's shape.
    """
    return weight.square() / (2 * inverse_diagonal)
