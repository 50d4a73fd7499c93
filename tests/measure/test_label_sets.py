"""Metrics of several labels and of numbers are those of scikit-learn and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from hfcompress.measure.bootstrap import compare_units
from hfcompress.measure.label_sets import LABEL_SET_METRICS, label_set_metric
from hfcompress.measure.numbers import NUMBER_METRICS, number_metric

ROWS = np.arange(80)


def label_table(seed: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    truth = generator.random((80, 4)) < [0.5, 0.2, 0.05, 0.7]
    logits = np.round(generator.normal(size=(80, 4)) + truth, 1)  # rounded: ties
    return logits, truth


def number_table(seed: int, columns: int = 1) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    truth = np.round(generator.normal(size=(80, columns)), 1)
    return truth + generator.normal(size=(80, columns)), truth


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("resampled", [False, True])
def test_label_sets_are_scored_as_in_scikit_learn(seed: int, resampled: bool) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    logits, truth = label_table(seed)
    rows = np.random.default_rng(seed).integers(0, 80, 80) if resampled else ROWS
    some, there = logits[rows], truth[rows]
    kept = there.any(0)
    expected = {
        "f1_micro": sklearn.f1_score(there, some > 0, average="micro"),
        "f1_macro": sklearn.f1_score(there, some > 0, average="macro", zero_division=0),
        "accuracy": sklearn.accuracy_score(there, some > 0),
        "mean_average_precision": np.mean(
            [sklearn.average_precision_score(there[:, n], some[:, n]) for n in np.flatnonzero(kept)]
        ),
    }
    assert set(expected) == set(LABEL_SET_METRICS)
    for name, value in expected.items():
        assert label_set_metric(name, logits, truth)(rows) == pytest.approx(value), name


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("resampled", [False, True])
def test_numbers_are_scored_as_in_scipy(seed: int, resampled: bool) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    found, truth = number_table(seed)
    rows = np.random.default_rng(seed).integers(0, 80, 80) if resampled else ROWS
    ours, theirs = found[rows, 0], truth[rows, 0]
    expected = {
        "pearson": stats.pearsonr(ours, theirs).statistic,
        "spearman": stats.spearmanr(ours, theirs).statistic,
        "rmse": sklearn.root_mean_squared_error(theirs, ours),
        "r2": sklearn.r2_score(theirs, ours),
    }
    assert set(expected) == set(NUMBER_METRICS)
    for name, value in expected.items():
        assert number_metric(name, found, truth)(rows) == pytest.approx(value), name


def test_several_numbers_are_averaged_and_constants_do_not_correlate() -> None:
    found, truth = number_table(0, columns=2)
    each = [number_metric("pearson", found[:, [n]], truth[:, [n]])(ROWS) for n in range(2)]
    assert number_metric("pearson", found, truth)(ROWS) == pytest.approx(np.mean(each))
    assert number_metric("pearson", np.ones_like(truth), truth)(ROWS) == 0.0


def test_the_interval_covers_at_its_rate() -> None:
    """Draws of 60 rows from a population whose metric is known: 90 % of the intervals hold it."""
    generator = np.random.default_rng(1)
    covered = 0
    for draw in range(120):
        truth = generator.normal(size=(60, 1))
        found = 0.6 * truth + 0.8 * generator.normal(size=(60, 1))
        value = number_metric("pearson", found, truth)
        quality = compare_units("pearson", value, 60, level=0.9, resamples=200, seed=draw)
        covered += quality.low <= 0.6 <= quality.high
    # 120 intervals at 90 %: 108 expected, the standard deviation is 3.3.
    assert 97 <= covered <= 118


def test_equal_models_do_not_differ_and_a_worse_one_does() -> None:
    found, truth = number_table(3)
    value, worse = number_metric("rmse", found, truth), number_metric("rmse", 3 * found, truth)
    same = compare_units("rmse", value, 80, value)
    assert (same.drop, same.paired_p) == (0.0, 1.0)
    other = compare_units("rmse", worse, 80, value)
    assert other.drop is not None
    assert other.drop > 0
    assert other.paired_p is not None
    assert other.paired_p < 0.02
