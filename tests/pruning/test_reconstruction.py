"""Weight updates against independent float64 references on small matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hfcompress.calibration.linalg import damped, inverse_upper, ridge_target
from hfcompress.pruning import reconstruction as reconstruct
from hfcompress.pruning.masks import layer_mask
from hfcompress.pruning.patterns import Chooser, Pattern


def problem(outputs: int = 6, inputs: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and the Gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    tokens = torch.randn(50, inputs, generator=generator, dtype=torch.float64) @ mixing
    return weight, tokens.T @ tokens / 50


def sparsegpt(weight: Tensor, factor: Tensor, drop: int, choose: Chooser, **options: Any) -> Tensor:
    return reconstruct.sparsegpt(weight, inverse_upper(factor), drop, choose, **options)


def loss(new: Tensor, weight: Tensor, gram: Tensor) -> float:
    change = new.double() - weight
    return float(((change @ gram) * change).sum())


def best_on_support(weight: Tensor, gram: Tensor, keep: Tensor) -> Tensor:
    """Row by row, the normal equations."""
    new = torch.zeros_like(weight)
    for row in range(len(weight)):
        index = keep[row].nonzero().flatten()
        if len(index):
            right = (gram @ weight[row])[index]
            new[row, index] = torch.linalg.solve(gram[index][:, index], right)
    return new


def sparsegpt_reference(weight: Tensor, gram: Tensor, drop: int, block: int) -> Tensor:
    """The paper's algorithm, literally: remove columns from the inverse one by one."""
    new, inputs = weight.clone(), weight.shape[1]
    done, keep = 0, torch.ones_like(weight, dtype=torch.bool)
    for column in range(inputs):
        # The inverse of what is left, without the columns already passed.
        inverse = torch.linalg.inv(gram[column:, column:])
        if column % block == 0:
            stop = min(column + block, inputs)
            diagonal = torch.stack(
                [torch.linalg.inv(gram[i:, i:])[0, 0] for i in range(column, stop)]
            )
            share = round(drop * stop / inputs) - done
            keep[:, column:stop] = layer_mask(new[:, column:stop].square() / diagonal, share)
            done += share
        lost = new[:, column].masked_fill(keep[:, column], 0)
        new[:, column:] -= torch.outer(lost / inverse[0, 0], inverse[0])
        new[:, column].masked_fill_(~keep[:, column], 0)
    return new


@pytest.mark.parametrize("block", [4, 5, 12, 128])
def test_sparsegpt_is_the_papers(block: int) -> None:
    weight, gram = problem()
    _, factor, _ = damped(gram, 0.0)
    new = sparsegpt(weight, factor, 40, layer_mask, block=block)
    reference = sparsegpt_reference(weight, gram, 40, block)
    assert int((new == 0).sum()) == 40
    torch.testing.assert_close(new, reference, rtol=1e-3, atol=1e-3)


def test_sparsegpt_chooses_n_of_m_with_the_weights_as_they_are_by_then() -> None:
    weight, gram = problem(seed=3)
    _, factor, _ = damped(gram, 0.0)
    choose = Pattern.parse("2:4").chooser()
    late = sparsegpt(weight, factor, 36, choose, block=12, group=4)
    small = sparsegpt(weight, factor, 36, choose, block=4)
    torch.testing.assert_close(late, small)
    assert (late.view(6, 3, 4) == 0).sum(2).tolist() == [[2, 2, 2]] * 6


def test_output_weight_moves_the_zeros() -> None:
    weight, gram = problem()
    _, factor, _ = damped(gram, 0.01)
    importance = torch.tensor([100.0, 1, 1, 1, 1, 1])
    plain = sparsegpt(weight, factor, 40, layer_mask)
    weighted = sparsegpt(weight, factor, 40, layer_mask, output_weight=importance)
    assert int((weighted[0] == 0).sum()) < int((plain[0] == 0).sum())


def test_least_squares_solves_the_normal_equations() -> None:
    weight, gram = problem()
    matrix, _, _ = damped(gram, 0.01)
    keep = layer_mask(weight.abs(), 40)
    new = reconstruct.least_squares(weight, matrix, keep, iterations=60)
    torch.testing.assert_close(new, best_on_support(weight, matrix, keep), rtol=1e-5, atol=1e-6)


def test_ridge_target_minimises_its_objective() -> None:
    weight, gram = problem()
    cross = weight @ gram + torch.randn(
        weight.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    matrix, factor, share = damped(gram, 0.1)
    found = ridge_target(weight, cross, gram, matrix, factor)
    scale = share * gram.diagonal().mean()
    # E|y - Wx|^2 + scale |W - W_old|^2 has zero gradient there.
    gradient = found @ gram - cross + scale * (found - weight)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-8)


def test_alps_beats_sparsegpt_and_magnitude_on_its_own_objective() -> None:
    better = []
    for seed in range(5):
        weight, gram = problem(8, 24, seed)
        matrix, factor, _ = damped(gram, 0.01)
        drop = 140
        keep = reconstruct.alps_mask(weight, matrix, drop, layer_mask)
        assert int((~keep).sum()) == drop
        mine = loss(reconstruct.least_squares(weight, matrix, keep), weight, matrix)
        column_wise = sparsegpt(weight, factor, drop, layer_mask)
        magnitude = best_on_support(weight, matrix, layer_mask(weight.abs(), drop))
        better.append(
            mine < min(loss(column_wise, weight, matrix), loss(magnitude, weight, matrix))
        )
    assert all(better)


def test_a_singular_gram_is_damped_until_it_is_not() -> None:
    tokens = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = tokens.T @ tokens
    matrix, factor, share = damped(gram, 0.0)
    assert share > 0
    torch.testing.assert_close(factor @ factor.T, matrix)
    assert damped(torch.eye(8), 0.0)[2] == 0
    with pytest.raises(ValueError, match="NaN"):
        damped(gram * float("nan"), 0.01)
