from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hfcompress.shrinking.obs import eliminate, refit


def problem(
    units: int, size: int, outputs: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """A weight and the moments of correlated inputs with the weight's own outputs as target."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(units * size, units * size, generator=generator)
    rows = torch.randn(500, units * size, generator=generator) @ mix
    weight = torch.randn(outputs, units * size, generator=generator)
    gram = rows.T @ rows / len(rows)
    return weight, gram, weight @ gram


def error(weight: Tensor, gram: Tensor, cross: Tensor, columns: Tensor) -> float:
    new = torch.zeros_like(weight)
    new[:, columns] = refit(weight, gram, cross, columns, 1e-8)
    change = new - weight
    return float(((change @ gram) * change).sum())


def columns(keep: Tensor, size: int) -> Tensor:
    return (keep[:, None] * size + torch.arange(size)).flatten()


@pytest.mark.parametrize("size", [1, 3])
def test_the_first_to_go_is_the_one_that_costs_least(size: int) -> None:
    weight, gram, cross = problem(6, size)
    kept = eliminate(weight, gram, cross, [5], size=size, damping=1e-8)[5]
    costs = {}
    for gone in range(6):
        others = torch.tensor([unit for unit in range(6) if unit != gone])
        costs[gone] = error(weight, gram, cross, columns(others, size))
    assert set(range(6)) - set(kept.tolist()) == {min(costs, key=lambda unit: costs[unit])}


def test_one_after_the_other_is_nearly_as_good_as_all_choices() -> None:
    weight, gram, cross = problem(8, 1)
    kept = eliminate(weight, gram, cross, [4], size=1, damping=1e-8, at_once=1)[4]
    every = [
        error(weight, gram, cross, torch.tensor(choice))
        for choice in itertools.combinations(range(8), 4)
    ]
    assert sum(other < error(weight, gram, cross, kept) for other in every) <= 3


def test_a_unit_that_others_can_stand_in_for_goes_though_its_weight_is_large() -> None:
    rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([rows, rows[:, :1] + rows[:, 1:2]], 1)
    weight = torch.tensor([[0.1, 0.1, 0.3, 9.0]])
    gram = rows.T @ rows / 400
    kept = eliminate(weight, gram, weight @ gram, [3], size=1, damping=1e-6)[3]
    assert 2 in kept.tolist()
    new = refit(weight, gram, weight @ gram, kept, 1e-6)
    torch.testing.assert_close(rows[:, kept] @ new.T, rows @ weight.T, atol=1e-2, rtol=1e-2)


def test_widths_are_nested_and_all_are_given() -> None:
    weight, gram, cross = problem(20, 1)
    kept = eliminate(weight, gram, cross, [0, 5, 12, 20], size=1, damping=0.01)
    assert {width: len(units) for width, units in kept.items()} == {0: 0, 5: 5, 12: 12, 20: 20}
    assert set(kept[5].tolist()) <= set(kept[12].tolist())
    assert torch.equal(kept[12], kept[12].sort().values)


def test_the_metric_decides_which_outputs_count() -> None:
    gram = torch.eye(2)
    weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    plain = eliminate(weight, gram, weight @ gram, [1], size=1, damping=1e-8)[1]
    second = torch.diag(torch.tensor([0.01, 1.0]))
    other = eliminate(weight, gram, weight @ gram, [1], size=1, damping=1e-8, metric=second)[1]
    assert (plain.tolist(), other.tolist()) == ([0], [1])


def test_the_target_may_be_another_than_the_weight() -> None:
    weight, gram, _ = problem(6, 1)
    wanted = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    new = refit(weight, gram, wanted @ gram, torch.arange(6), 1e-9)
    torch.testing.assert_close(new, wanted, atol=1e-3, rtol=1e-3)
    held = refit(weight, gram, wanted @ gram, torch.arange(6), 1e6)
    torch.testing.assert_close(held, weight, atol=1e-3, rtol=1e-3)


def test_nothing_left_is_nothing() -> None:
    weight, gram, cross = problem(3, 1)
    assert refit(weight, gram, cross, torch.arange(0), 0.01).shape == (5, 0)
    assert (
        eliminate(weight[:, :0], gram[:0, :0], cross[:, :0], [0], size=1, damping=0.01)[0].numel()
        == 0
    )
