"""The block Fisher: second-order pruning with blocks of consecutive weights. Tensors only.

(Kurtic et al. 2022, the optimal BERT surgeon, arXiv 2203.07259.)
"""

from __future__ import annotations

import torch
from torch import Tensor


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
