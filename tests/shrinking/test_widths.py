from __future__ import annotations

import itertools
import random

import pytest

from hfcompress.errors import ConfigError
from hfcompress.shrinking.widths import (
    Costs,
    allowed_widths,
    check_budget,
    optimal,
    ranked,
    total,
    uniform,
)

COSTS = {"a": {0: 0.0, 1: 10.0, 2: 20.0, 4: 40.0}, "b": {0: 0.0, 2: 6.0, 4: 9.0}}


def tables(seed: int) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    generator = random.Random(seed)
    costs, errors = {}, {}
    for name in "abc":
        steps = sorted(generator.sample(range(1, 9), 4))
        costs[name] = {w: w * generator.uniform(1, 3) for w in [0, *steps]}
        falling = sorted((generator.random() for _ in range(5)), reverse=True)
        errors[name] = dict(zip([0, *steps], falling, strict=True))
    return costs, errors


@pytest.mark.parametrize("seed", range(8))
def test_the_dynamic_program_finds_what_trying_all_finds(seed: int) -> None:
    costs, errors = tables(seed)
    limit = 0.6 * sum(max(levels.values()) for levels in costs.values())
    found = optimal(costs, errors, limit)
    assert total(costs, found) <= limit
    best = min(
        sum(errors[name][w] for name, w in zip(costs, choice, strict=True))
        for choice in itertools.product(*costs.values())
        if total(costs, dict(zip(costs, choice, strict=True))) <= 0.999 * limit
    )
    assert sum(errors[name][w] for name, w in found.items()) <= best + 1e-12


def test_all_that_the_budget_allows_is_kept() -> None:
    errors = {name: dict.fromkeys(levels, 1.0) for name, levels in COSTS.items()}
    assert optimal(COSTS, errors, 49.0) == {"a": 4, "b": 4}
    assert optimal(COSTS, errors, 48.0) in ({"a": 4, "b": 2}, {"a": 2, "b": 4})
    assert optimal(COSTS, errors, 0.0) == {"a": 0, "b": 0}


def test_uniform_is_the_same_share() -> None:
    costs = {name: {w: float(w) for w in range(11)} for name in "ab"}
    assert uniform(costs, 10.0) == {"a": 5, "b": 5}
    assert uniform(costs, 20.0) == {"a": 10, "b": 10}
    assert uniform(costs, 0.0) == {"a": 0, "b": 0}


def test_uniform_gives_out_what_whole_heads_leave() -> None:
    heads = {w: 10.0 * w for w in range(5)}
    neurons = {w: float(w) for w in range(41)}
    costs = {"heads 0": heads, "neurons 0": neurons, "heads 1": heads, "neurons 1": neurons}
    # The second head of both layers does not fit beside the same share of neurons.
    assert uniform(costs, 64.0) == {"heads 0": 1, "neurons 0": 22, "heads 1": 1, "neurons 1": 22}
    # Here it does, and one neuron more.
    assert uniform(costs, 73.0) == {"heads 0": 2, "neurons 0": 16, "heads 1": 2, "neurons 1": 16}


def test_ranked_takes_the_best_for_their_cost() -> None:
    costs = {"a": {w: 10.0 * w for w in range(3)}, "b": {w: 1.0 * w for w in range(4)}}
    scores = {"a": [50.0, 8.0], "b": [0.7, 4.0, 2.0]}
    assert ranked(costs, scores, 12.0) == {"a": 1, "b": 2}
    assert ranked(costs, scores, 23.0) == {"a": 2, "b": 3}


def test_a_budget_that_cannot_be_met_says_the_least() -> None:
    costs = Costs({"a": {1: 10.0, 2: 20.0}}, 9.0, 1000.0, "parameters")
    with pytest.raises(ConfigError, match=r"1,009 parameters is below .* the least is 1,010"):
        check_budget(costs)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((4, 0, 1), [0, 1, 2, 3, 4]),
        ((4, 2, 1), [2, 3, 4]),
        ((20, 0, 8), [0, 8, 16, 20]),
        ((3, 9, 1), [3]),
    ],
)
def test_allowed_widths(arguments: tuple[int, int, int], expected: list[int]) -> None:
    assert allowed_widths(*arguments) == expected


def test_many_units_are_counted_in_steps() -> None:
    widths = allowed_widths(1536, 0, 1)
    assert 90 < len(widths) < 110
    assert all(width % 8 == 0 for width in allowed_widths(3072, 0, 8))
