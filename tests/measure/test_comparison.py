"""Two models compared: paired tests against enumeration, intervals against scipy, Holm by hand."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from hfcompress.errors import DataError
from hfcompress.measure.comparison import (
    Difference,
    compare_classes,
    compare_intervals,
    compare_right,
    compare_scores,
    holm,
)


def right(won: int, lost: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.array([1] * won + [0] * lost + [1] * both + [0] * neither)
    second = np.array([0] * won + [1] * lost + [1] * both + [0] * neither)
    return first, second


def test_accuracy_is_compared_by_the_rows_that_one_model_gets_right() -> None:
    first, second = right(won=9, lost=2, both=80, neither=9)
    found = compare_right(first, second)
    assert found.value == pytest.approx(0.07)
    exact = 2 * sum(comb(11, k) for k in range(9, 12)) / 2**11
    assert found.p == pytest.approx(exact)
    assert (found.test, found.n) == ("McNemar", 100)
    wald = 1.96 * np.sqrt(11 / 100 - 0.07**2) / 10
    assert [found.low, found.high] == [
        pytest.approx(0.07 - wald, abs=0.011), pytest.approx(0.07 + wald, abs=0.011),
    ]  # fmt: skip
    other = compare_right(second, first)
    assert other.value == -found.value
    assert other.p == pytest.approx(exact)
    assert compare_right(first, first).p == 1.0


def test_rows_that_both_find_hard_do_not_blur_a_paired_difference() -> None:
    hard = np.random.default_rng(0).normal(size=300)
    noise = np.random.default_rng(1).normal(scale=0.1, size=300)
    first, second = hard + 0.02 + noise, hard
    found = compare_scores(first, second)
    expected = stats.ttest_rel(first, second)
    assert found.test == "paired bootstrap"
    assert found.value == pytest.approx((first - second).mean())
    assert found.p == pytest.approx(expected.pvalue, abs=0.01)
    interval = expected.confidence_interval()
    assert [found.low, found.high] == [
        pytest.approx(interval.low, abs=0.002), pytest.approx(interval.high, abs=0.002),
    ]  # fmt: skip
    assert stats.ttest_ind(first, second).pvalue > 0.5  # what an unpaired test sees


def f1_by_counting(labels: np.ndarray, answers: np.ndarray) -> float:
    return float(2 * (labels & answers).sum() / (labels.sum() + answers.sum()))


def test_f1_is_compared_on_the_same_draws_of_rows() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 250)
    first = np.where(draw.random(250) < 0.1, 1 - labels, labels)
    second = np.where(draw.random(250) < 0.1, 1 - first, first)
    found = compare_classes("f1", np.eye(2)[first], second, labels)
    whole = f1_score(labels, first) - f1_score(labels, second)
    assert found.value == pytest.approx(whole)
    rows = [draw.integers(0, 250, 250) for _ in range(400)]
    draws = [
        f1_by_counting(labels[r], first[r]) - f1_by_counting(labels[r], second[r]) for r in rows
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert [found.low, found.high] == [
        pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01),
    ]  # fmt: skip


def test_scores_of_right_and_wrong_are_answers() -> None:
    first, second = right(won=5, lost=1, both=10, neither=4)
    assert compare_scores(first, second) == compare_right(first, second)


def test_values_on_different_rows_are_compared_by_their_intervals() -> None:
    found = compare_intervals(0.92, 0.90, (0.90, 0.94), (0.88, 0.92))
    z = 0.02 / (0.04 * np.sqrt(2) / (2 * stats.norm.ppf(0.975)))
    assert found.p == pytest.approx(2 * stats.norm.sf(z))
    assert found.low is not None
    assert found.low < 0 < found.value
    assert compare_intervals(1.0, 0.5, lower_is_better=True) == Difference(-0.5)
    assert compare_intervals(1.0, 1.0, (1.0, 1.0), (1.0, 1.0)).p == 1.0


def test_p_values_of_many_hold_together() -> None:
    given = [Difference(0.1, p=p) for p in (0.01, 0.04, 0.03)] + [Difference(0.2)]
    assert [one.p for one in holm(given)] == [
        pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06), None,
    ]  # fmt: skip
    assert not holm(given)[1].is_certain
    assert holm(given)[0].is_certain


@pytest.mark.parametrize("pair", [([], []), ([1, 0], [1])])
def test_answers_that_do_not_match_are_refused(pair: tuple[list[int], list[int]]) -> None:
    with pytest.raises(DataError, match="one answer of each model for each row"):
        compare_right(*pair)
