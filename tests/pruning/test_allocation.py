"""Allocations drop exactly what was asked, and the dynamic program finds the least error."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfcompress.pruning import allocation


@settings(deadline=None, max_examples=100)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 500), st.floats(-50, 600)), min_size=1, max_size=8),
    share=st.floats(0, 1),
)
def test_counts_sum_to_the_total(pairs: list[tuple[int, float]], share: float) -> None:
    sizes = {str(index): size for index, (size, _) in enumerate(pairs)}
    wanted = {str(index): want for index, (_, want) in enumerate(pairs)}
    total = round(share * sum(sizes.values()))
    counts = allocation.spread_to_total(wanted, sizes, total)
    assert sum(counts.values()) == total
    assert all(0 <= counts[name] <= sizes[name] for name in sizes)


def test_owl_spares_layers_with_outliers() -> None:
    sizes = {"plain": 1000, "outliers": 1000}
    counts = allocation.owl({"plain": 0.0, "outliers": 0.1}, sizes, 1000, 0.08)
    assert counts == {"plain": 580, "outliers": 420}
    assert allocation.owl({"plain": 0.1, "outliers": 0.1}, sizes, 1000, 0.08)["plain"] == 500


def test_outlier_share() -> None:
    scores = torch.ones(100)
    scores[:3] = 50
    assert allocation.outlier_share(scores, 5) == pytest.approx(0.03)
    assert allocation.outlier_share(scores, 30) == 0


@pytest.mark.parametrize("seed", range(5))
def test_optimal_finds_the_least_error(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"a": 100, "b": 200, "c": 50}
    levels = (0.0, 0.25, 0.5, 0.75)
    errors = {name: [0.0, *torch.rand(3, generator=generator).cumsum(0).tolist()] for name in sizes}
    total = 175
    counts = allocation.optimal(errors, levels, sizes, total)
    best = min(
        sum(errors[name][level] for name, level in zip(sizes, choice, strict=True))
        for choice in product(range(4), repeat=3)
        if sum(levels[c] * sizes[n] for n, c in zip(sizes, choice, strict=True)) >= total
    )
    chosen = {name: min(level for level in range(4) if levels[level] * size >= counts[name])
              for name, size in sizes.items()}  # fmt: skip
    assert sum(counts.values()) == total
    assert sum(errors[name][level] for name, level in chosen.items()) == pytest.approx(best)


def test_optimal_gives_what_it_can_where_levels_end() -> None:
    counts = allocation.optimal({"a": [0.0, 1.0]}, (0.0, 0.5), {"a": 100}, 90)
    assert counts == {"a": 90}
    assert allocation.optimal({"a": [0.0, 1.0]}, (0.0, 0.5), {"a": 100}, 0) == {"a": 0}


def test_finer_tables_interpolate() -> None:
    levels, errors = allocation.finer((0.0, 0.5, 1.0), {"a": [0.0, 1.0, 5.0]}, 0.75)
    assert levels[-1] == 0.75
    assert errors["a"][25] == pytest.approx(0.5)
    assert errors["a"][75] == pytest.approx(3.0)
