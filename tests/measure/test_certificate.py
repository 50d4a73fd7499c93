"""The bound of a loss covers at the stated rate and is never looser than it must say."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfcompress.errors import ConfigError, DataError
from hfcompress.measure.certificate import certify_drop, drop_bound, drop_p_value


def answers(n: int, lost: int, gained: int) -> tuple[np.ndarray, np.ndarray]:
    """Who is right on each row: ``lost`` rows by the dense model alone, ``gained`` the reverse."""
    dense, small = np.ones(n, bool), np.ones(n, bool)
    small[:lost] = False
    dense[lost : lost + gained] = False
    return dense, small


def tail_by_enumeration(n: int, difference: int, lost: float, gained: float) -> float:
    """P(lost rows - gained rows <= difference), every outcome counted."""
    total = 0.0
    for b, c in product(range(n + 1), repeat=2):
        if b + c <= n and b - c <= difference:
            ways = comb(n, b) * comb(n - b, c)
            total += ways * lost**b * gained**c * (1 - lost - gained) ** (n - b - c)
    return total


@pytest.mark.parametrize(("n", "lost", "gained"), [(12, 2, 1), (20, 0, 0), (15, 6, 2)])
def test_at_the_bound_the_tail_is_the_error_rate(n: int, lost: int, gained: int) -> None:
    bound = drop_bound(n, lost, gained)
    shares = np.linspace(bound, 1, 400)
    tails = [
        tail_by_enumeration(n, lost - gained, (share + bound) / 2, (share - bound) / 2)
        for share in shares
    ]
    # The interval of the nuisance parameter is part of [bound, 1]; outside it the tail may be
    # anything, so the largest tail over all of [bound, 1] is at least what was allowed.
    assert max(tails) >= 0.049 - 1e-3
    # The share that was seen lies in the interval: there the tail is no more than was allowed.
    seen = max((lost + gained) / n, bound)
    at = tail_by_enumeration(n, lost - gained, (seen + bound) / 2, (seen - bound) / 2)
    assert at <= 0.049 + 1e-6


@pytest.mark.parametrize(
    ("n", "lost", "gained"), [(200, 0.05, 0.02), (400, 0.03, 0.03), (100, 0.02, 0.0)]
)
def test_the_bound_covers_at_the_stated_rate(n: int, lost: float, gained: float) -> None:
    draws = 500
    counts = np.random.default_rng(0).multinomial(n, [lost, gained, 1 - lost - gained], draws)
    pairs, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    held = sum(
        int(count)
        for (b, c), count in zip(pairs.tolist(), times, strict=True)
        if drop_p_value(n, b, c, lost - gained) > 0.05
    )
    # Exact: never below 95 %, up to the error of 500 draws.
    assert held / draws >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / draws)


def test_the_bound_is_where_the_p_value_is_the_error_rate() -> None:
    bound = drop_bound(300, 9, 6)
    assert drop_p_value(300, 9, 6, bound) == pytest.approx(0.05, abs=1e-4)
    assert drop_p_value(300, 9, 6, bound - 0.002) > 0.05 > drop_p_value(300, 9, 6, bound + 0.002)


@settings(max_examples=8, deadline=None)
@given(st.integers(20, 150), st.data())
def test_more_losses_and_more_confidence_raise_the_bound(n: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, n // 3))
    gained = data.draw(st.integers(0, n // 3))
    bound = drop_bound(n, lost, gained)
    assert (lost - gained) / n <= bound <= 1
    assert drop_bound(n, lost + 1, gained) >= bound - 1e-6
    assert drop_bound(n, lost, gained, 0.99) >= bound - 1e-6


def test_identical_answers_are_certain_with_enough_rows() -> None:
    few, many = (certify_drop(*answers(n, 0, 0), 0.01) for n in (100, 1000))
    assert (few.certain, many.certain) == (False, True)
    assert few.rows_needed is not None
    assert few.rows_needed > 100
    assert many.rows_needed is None
    assert many.sentence == (
        "at most 1.0 points are lost, 95% sure, on 1,000 rows (+0.0 seen: 0 rows lost, 0 gained)"
    )


def test_says_how_many_rows_would_do() -> None:
    found = certify_drop(*answers(872, 20, 14), 0.01)
    assert (found.lost, found.gained, found.n) == (20, 14, 872)
    assert not found.certain
    assert found.rows_needed is not None
    assert "not certain with 872 rows; about" in found.sentence
    # With so many rows at the same rates it is certain, or nearly so.
    scale = found.rows_needed / 872
    later = certify_drop(*answers(found.rows_needed, round(20 * scale), round(14 * scale)), 0.01)
    assert later.bound < 0.0115


def test_no_number_of_rows_helps_where_the_loss_is_too_large() -> None:
    found = certify_drop(*answers(500, 20, 5), 0.01)
    assert (found.rows_needed, found.certain) == (None, False)
    assert "the loss seen is not below 1.0 points" in found.sentence
    assert found.to_dict()["certain"] is False


def test_refuses_what_cannot_be_certified() -> None:
    dense, small = answers(10, 1, 0)
    with pytest.raises(ConfigError, match="max_drop must be a fraction"):
        certify_drop(dense, small, 1.5)
    with pytest.raises(ConfigError, match="confidence must be between"):
        certify_drop(dense, small, 0.01, 95)
    with pytest.raises(DataError, match="one answer of each model"):
        certify_drop(dense, small[:5], 0.01)
    with pytest.raises(DataError, match="one answer of each model"):
        certify_drop([], [], 0.01)
