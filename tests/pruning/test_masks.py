"""Exact, deterministic choice of what to drop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfcompress.pruning import masks


def reference(values: list[Tensor], drop: int) -> list[Tensor]:
    """Keep masks by a full stable sort in float64."""
    flat = torch.cat([value.double().flatten() for value in values])
    keep = torch.ones(len(flat), dtype=torch.bool)
    keep[torch.sort(flat, stable=True).indices[:drop]] = False
    sizes = [value.numel() for value in values]
    return [
        part.view(value.shape) for part, value in zip(torch.split(keep, sizes), values, strict=True)
    ]


@settings(deadline=None, max_examples=60)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    share=st.floats(0, 1),
    levels=st.sampled_from([2, 7, 0]),
    seed=st.integers(0, 1000),
)
def test_global_masks_equal_a_stable_sort(
    shapes: list[tuple[int, int]], share: float, levels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randn(shape, generator=generator) for shape in shapes]
    if levels:  # few levels: most scores are ties
        scores = [(score * levels).round() for score in scores]
    drop = int(share * sum(score.numel() for score in scores))
    for mine, theirs in zip(masks.global_masks(scores, drop), reference(scores, drop), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_magnitude_cuts_equal_masks_from_magnitudes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(shape, generator=generator).to(dtype) for shape in ((300, 70), (9, 1000))
    ]
    keep = reference([weight.abs() for weight in weights], 12_000)
    expected = [weight * mask for weight, mask in zip(weights, keep, strict=True)]
    zeros = masks.cut_magnitudes_(weights, masks.magnitude_cut(weights, 12_000))
    assert zeros == [int((weight == 0).sum()) for weight in weights]
    assert sum(zeros) == 12_000
    for mine, theirs in zip(weights, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("values", ["sorted", "constant", "one spike", "two levels"])
def test_thresholds_where_a_sample_misleads(values: str) -> None:
    count = 300_000
    data = {
        "sorted": torch.arange(count, dtype=torch.float32),
        "constant": torch.ones(count),
        "one spike": torch.cat([torch.zeros(count - 1), torch.ones(1)]),
        "two levels": torch.arange(count).remainder(5).gt(0).float(),
    }[values]
    for drop in (1, count // 3, count - 1, count):
        keep = masks.layer_mask(data, drop)
        assert int((~keep).sum()) == drop
        assert torch.equal(keep, reference([data], drop)[0])


def test_zeros_that_are_there_count_first() -> None:
    weight = torch.tensor([[0.0, 3.0, -0.0, 1.0], [2.0, -4.0, 0.0, 5.0]])
    assert masks.cut_magnitudes_([weight], masks.magnitude_cut([weight], 4)) == [4]
    assert weight.flatten().tolist() == [0, 3, 0, 0, 2, -4, 0, 5]


def test_a_cut_at_zero_counts_the_zeros_that_stay() -> None:
    weight = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert masks.cut_magnitudes_([weight], masks.magnitude_cut([weight], 1)) == [3]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_are_refused(value: float, dtype: torch.dtype) -> None:
    weight = torch.ones(100, dtype=dtype)
    weight[50] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        masks.magnitude_cut([weight], 10)


def test_count_zeros_and_is_finite() -> None:
    tensor = torch.tensor([0.0, -0.0, 1.0])
    assert masks.count_zeros(tensor) == 2
    assert masks.is_finite(tensor)
    assert not masks.is_finite(tensor / 0)
