"""The block Fisher against explicit inverses in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from hfcompress.pruning.oneshot import fisher_portions
from hfcompress.pruning.scores import BlockFisher

WEIGHTS, BLOCK, DAMPING, COUNT = 14, 4, 0.1, 6


def gradients() -> Tensor:
    return torch.randn(COUNT, WEIGHTS, generator=torch.Generator().manual_seed(0)).double()


def explicit(block: slice) -> Tensor:
    part = gradients()[:, block]
    return DAMPING * torch.eye(part.shape[1], dtype=torch.float64) + part.T @ part / COUNT


def collected() -> BlockFisher:
    fisher = BlockFisher(WEIGHTS, BLOCK, DAMPING, COUNT)
    for gradient in gradients():
        fisher.add(gradient.view(2, 7))
    return fisher


def test_rank_one_updates_give_the_inverse() -> None:
    fisher = collected()
    diagonal = fisher.diagonal(torch.Size((2, 7))).flatten()
    for start in range(0, WEIGHTS, BLOCK):
        block = slice(start, min(start + BLOCK, WEIGHTS))
        inverse = torch.linalg.inv(explicit(block))
        torch.testing.assert_close(
            diagonal[block].double(), inverse.diagonal(), rtol=1e-4, atol=1e-4
        )


def test_the_update_minimises_the_quadratic_model() -> None:
    weight = torch.randn(2, 7, generator=torch.Generator().manual_seed(1))
    keep = torch.rand(2, 7, generator=torch.Generator().manual_seed(2)) > 0.5
    new = collected().prune(weight, keep).flatten().double()
    assert torch.equal(new == 0, ~keep.flatten())
    for start in range(0, WEIGHTS, BLOCK):
        block = slice(start, min(start + BLOCK, WEIGHTS))
        fisher, kept = explicit(block), keep.flatten()[block]
        old = weight.flatten()[block].double()
        # Least (new - old)' F (new - old) with the dropped weights at zero.
        free = kept.nonzero().flatten()
        gone = (~kept).nonzero().flatten()
        expected = torch.zeros_like(old)
        if len(free):
            pull = fisher[free][:, gone] @ old[gone]
            expected[free] = old[free] + torch.linalg.solve(fisher[free][:, free], pull)
        torch.testing.assert_close(new[block], expected, rtol=1e-3, atol=1e-4)


def test_layers_are_portioned_by_memory() -> None:
    sizes = {"a": 3_000_000, "b": 3_000_000, "c": 10}
    assert fisher_portions(sizes, 50) == [["a"], ["b", "c"]]
    assert fisher_portions(sizes, 2) == [["a", "b", "c"]]
