"""How important each weight is: tensors in, scores of the same shape out; low scores are dropped.

W is outputs x inputs. Statistics of inputs are taken over real tokens only (no padding).
"""

from __future__ import annotations

import math

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


class BlockFisher:
    """Inverse of F = damping I + mean(g g'), for each block of a layer's flattened weight.

    Args:
        weights: number of weights in the layer.
        block: weights in a block; the last is filled up.
        damping: lambda.
        count: how many gradients will be added.
    """

    def __init__(self, weights: int, block: int, damping: float, count: int) -> None:
        self._weights, self._block, self._count = weights, block, count
        blocks = -(-weights // block)
        self.inverse = (torch.eye(block) / damping).repeat(blocks, 1, 1)

    def add(self, gradient: Tensor) -> None:
        """Add one gradient by a rank-one update (Sherman and Morrison)."""
        g = self._blocks(gradient)[:, :, None]
        product = self.inverse @ g
        scale = self._count + (g * product).sum((1, 2), keepdim=True)
        self.inverse.baddbmm_(product / scale, product.mT, alpha=-1)

    def diagonal(self, shape: torch.Size) -> Tensor:
        """[F^-1]_ii of each weight."""
        return self._flat(self.inverse.diagonal(dim1=1, dim2=2)).view(shape)

    def prune(self, weight: Tensor, keep: Tensor) -> Tensor:
        """Set the dropped weights to zero and let the others of their blocks make up for it.

        The exact minimiser of the quadratic model: with Q the dropped weights of a block,
        w - F^-1[:, Q] (F^-1[Q, Q])^-1 w_Q.

        Args:
            weight: any shape.
            keep: mask of the same shape.
        """
        w, kept = self._blocks(weight), self._blocks(keep.float()) > 0
        dropped = (~kept).float()
        dropped[-1, self._weights - (len(w) - 1) * self._block :] = 0  # the filling stays
        # One system for all blocks: identity where a weight is kept.
        corner = self.inverse * dropped[:, :, None] * dropped[:, None, :]
        corner = corner + torch.diag_embed(1 - dropped)
        share = torch.linalg.solve(corner, (w * dropped)[:, :, None])
        repaired = w - (self.inverse @ (share * dropped[:, :, None]))[:, :, 0]
        return self._flat(repaired).view(weight.shape).to(weight.dtype) * keep

    def _blocks(self, tensor: Tensor) -> Tensor:
        flat = tensor.reshape(-1).float()
        filling = -len(flat) % self._block
        return torch.nn.functional.pad(flat, (0, filling)).view(-1, self._block)

    def _flat(self, blocks: Tensor) -> Tensor:
        return blocks.reshape(-1)[: self._weights]


def movement_update_(scores: Tensor, weight: Tensor, gradient: Tensor) -> None:
    """Add ``-weight * gradient`` to the scores, in place (equation 3 of the paper).

    Args:
        scores: floats of the weight's shape.
        weight: the weight before masking, pruned entries included.
        gradient: the loss's gradient with respect to the masked weight.
    """
    scores.addcmul_(weight.to(scores.dtype), gradient.to(scores.dtype), value=-1)


def soft_movement_update_(
    scores: Tensor, weight: Tensor, gradient: Tensor, *, learning_rate: float, pull: float
) -> None:
    """One step of gradient descent on the scores, with a pull towards more zeros, in place.

    The gradient ``weight * gradient`` is scaled to a root mean square of 1 over the tensor, so
    that learning rate and pull mean the same in every layer and with every loss; the pull is the
    gradient of ``sum(sigmoid(scores))``, the paper's regulariser.

    Args:
        scores: floats of the weight's shape, in logits.
        weight: the weight before masking, pruned entries included.
        gradient: the loss's gradient with respect to the masked weight.
        learning_rate: step size in logits.
        pull: weight of the regulariser beside a gradient of root mean square 1.
    """
    step = weight.to(scores.dtype) * gradient.to(scores.dtype)
    step /= step.square().mean().sqrt().clamp_min(torch.finfo(step.dtype).tiny)
    kept = torch.sigmoid(scores)
    step += pull * kept * (1 - kept)
    scores.sub_(step, alpha=learning_rate)


def soft_movement_mask(scores: Tensor, threshold: float) -> Tensor:
    """Keep (True) where ``sigmoid(scores) > threshold``, for a threshold in [0, 1)."""
    if threshold <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores > math.log(threshold / (1 - threshold))
