"""Scores against plain loops in float64."""

from __future__ import annotations

import pytest
import torch

from hfcompress.pruning import scores


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_lamp() -> None:
    weight = matrix(4, 5)
    values = scores.lamp(weight)
    flat = weight.flatten().square()
    for index, square in enumerate(flat):
        not_smaller = sum(other for other in flat if other >= square)
        assert values.flatten()[index] == pytest.approx(float(square / not_smaller))
    assert float(values.max()) == pytest.approx(1.0)


def test_lamp_of_zeros_is_zero() -> None:
    assert scores.lamp(torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]


def test_wanda() -> None:
    weight, inputs = matrix(3, 4), matrix(10, 4, seed=1)
    norm = inputs.square().mean(0).sqrt()
    values = scores.wanda(weight, norm)
    for row in range(3):
        for column in range(4):
            rms = (sum(x**2 for x in inputs[:, column].tolist()) / 10) ** 0.5
            assert float(values[row, column]) == pytest.approx(
                abs(float(weight[row, column])) * rms
            )


def test_gradient_scores() -> None:
    weight, gradients = matrix(3, 4), matrix(6, 3, 4, seed=1)
    taylor = scores.taylor(weight, gradients.abs().mean(0))
    fisher = scores.fisher(weight, gradients.square().mean(0))
    expected = torch.stack([(weight * gradient).abs() for gradient in gradients]).mean(0)
    torch.testing.assert_close(taylor, expected)
    expected = torch.stack([(weight * gradient).square() for gradient in gradients]).mean(0) / 2
    torch.testing.assert_close(fisher, expected)


def test_random_depends_on_the_seed_and_spares_no_zero() -> None:
    weight = matrix(8, 8)
    weight[0] = 0
    first, again, other = (
        scores.random(weight, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert bool((first[0] == 0).all())
