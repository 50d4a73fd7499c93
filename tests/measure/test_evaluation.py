from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from sklearn import metrics as sk

from hfcompress.errors import ConfigError, DataError, SourceError
from hfcompress.measure import metrics as metrics_module
from hfcompress.measure.evaluation import (
    agreement,
    compare,
    compute_metric,
    confidence_interval,
    mcnemar,
    metric_names,
    predicted_classes,
    standard_error,
)

REFERENCE: dict[str, Any] = {
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "cohen_kappa": lambda y, p: np.nan_to_num(sk.cohen_kappa_score(y, p)),
    "f1": lambda y, p: sk.f1_score(y, p, zero_division=0.0),
    "matthews_correlation": sk.matthews_corrcoef,
    "precision": lambda y, p: sk.precision_score(y, p, zero_division=0.0),
    "recall": lambda y, p: sk.recall_score(y, p, zero_division=0.0),
}
for _name, _score in {
    "f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score,
}.items():  # fmt: skip
    for _average in ("macro", "micro", "weighted"):
        REFERENCE[f"{_name}_{_average}"] = partial(_score, average=_average, zero_division=0.0)
# Metrics of class 1 of two classes.
BINARY = {"f1", "precision", "recall"}
PAIRS = st.integers(2, 4).flatmap(
    lambda k: st.lists(
        st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=30
    )
)


def test_every_built_in_metric_has_a_reference() -> None:
    assert set(metric_names()) == set(REFERENCE)


@pytest.mark.parametrize("name", sorted(REFERENCE))
@settings(max_examples=25, deadline=None)
@given(pairs=PAIRS)
def test_metrics_equal_scikit_learn(name: str, pairs: list[tuple[int, int]]) -> None:
    predictions, labels = np.array(pairs).T
    if name in BINARY and max(predictions.max(), labels.max()) > 1:
        with pytest.raises(DataError, match=f"use {name}_macro"):
            compute_metric(name, predictions, labels)
        return
    with warnings.catch_warnings():  # scikit-learn warns where a score is not defined
        warnings.simplefilter("ignore")
        expected = REFERENCE[name](labels, predictions)
    assert compute_metric(name, predictions, labels) == pytest.approx(expected, abs=1e-12)


def test_metrics_go_through_evaluate() -> None:
    metric = metrics_module.ConfusionMetric("accuracy")
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=[0, 1], references=[0, 0]) == {"accuracy": 0.5}


def test_logits_and_class_ids_give_the_same_metric() -> None:
    logits = np.array([[0.1, 0.9], [2.0, -1.0], [0.0, 5.0]], dtype=np.float32)
    assert predicted_classes(logits).tolist() == [1, 0, 1]
    assert compute_metric("accuracy", logits, [1, 0, 0]) == pytest.approx(2 / 3)


def test_computing_a_metric_writes_nothing_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    compute_metric("f1", [0, 1], [0, 1])
    assert os.listdir(tmp_path) == []


def test_metrics_can_be_computed_in_parallel_threads() -> None:
    generator = np.random.default_rng(0)
    labels = [generator.integers(0, 2, 50) for _ in range(16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda y: compute_metric("accuracy", np.ones(50, int), y), labels))
    assert found == pytest.approx([float(y.mean()) for y in labels])


def test_refuses_a_metric_that_cannot_be_loaded_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("no module\nsecond line")

    monkeypatch.setattr(evaluate, "load", offline)
    monkeypatch.setattr(metrics_module, "_trusted", {"rouge"})
    with pytest.raises(SourceError, match="'rouge' is not built in") as error:
        compute_metric("rouge", [0], [0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["./evil", "rouge", "acuracy", "accuracy/", "/tmp/evil.py"])
def test_a_metric_that_is_not_trusted_is_not_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a script was loaded")

    monkeypatch.setattr(evaluate, "load", never)
    with pytest.raises(ConfigError, match=r"is not built in.*trust_remote_code"):
        compute_metric(name, [0, 1], [0, 1])


class FixedMetric:
    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result

    def compute(self, **_: object) -> dict[str, Any]:
        return self.result


def test_a_metric_of_evaluate_is_computed_and_bootstrapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Share(FixedMetric):
        def compute(self, **inputs: Any) -> dict[str, Any]:
            return {"per_class": [1, 2], "share": float(np.mean(inputs["predictions"]))}

    monkeypatch.setattr(evaluate, "load", lambda *_, **__: Share({}))
    monkeypatch.setattr(metrics_module, "_trusted", {"share"})
    classes = np.array([0, 1, 1, 1])
    assert compute_metric("share", classes, classes) == 0.75
    low, high = confidence_interval("share", classes, classes, resamples=50)
    assert low < 0.75 < high
    monkeypatch.setattr(evaluate, "load", lambda *_, **__: FixedMetric({"table": [1, 2]}))
    with pytest.raises(DataError, match="no single number"):
        compute_metric("share", classes, classes)


def wilson_by_hand(hits: int, n: int, z: float) -> tuple[float, float]:
    centre = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(hits * (n - hits) / n + z * z / 4)
    return centre - half, centre + half


def test_accuracy_has_the_wilson_interval() -> None:
    predictions = np.array([1] * 794 + [0] * 78)
    labels = np.ones(872, int)
    found = confidence_interval("accuracy", predictions, labels)
    assert found == pytest.approx(wilson_by_hand(794, 872, 1.959963984540054))
    assert found == pytest.approx((0.8897, 0.9278), abs=1e-4)
    narrow = confidence_interval("accuracy", predictions, labels, level=0.5)
    assert narrow == pytest.approx(wilson_by_hand(794, 872, 0.6744897501960817))


def test_standard_error_of_accuracy_is_binomial() -> None:
    predictions = np.array([1] * 794 + [0] * 78)
    found = standard_error("accuracy", predictions, np.ones(872, int))
    assert found == pytest.approx(0.00966, abs=1e-5)


def noisy(n: int = 400) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, n)
    return np.where(generator.random(n) < 0.8, labels, 1 - labels), labels


def counts_of(labels: Any, predictions: Any) -> tuple[Any, Any, Any, Any]:
    """True and false positives, false and true negatives of each row of a table of two classes."""
    pairs = ((1, 1), (0, 1), (1, 0), (0, 0))
    tp, fp, fn, tn = (((labels == a) & (predictions == b)).sum(1) for a, b in pairs)
    return tp, fp, fn, tn


def f1_of(tp: Any, fp: Any, fn: Any) -> Any:
    return 2 * tp / (2 * tp + fp + fn)


BY_COUNTS = {
    "f1": lambda tp, fp, fn, tn: f1_of(tp, fp, fn),
    "f1_macro": lambda tp, fp, fn, tn: (f1_of(tp, fp, fn) + f1_of(tn, fn, fp)) / 2,
    "matthews_correlation": lambda tp, fp, fn, tn: (
        (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    ),
}


@pytest.mark.parametrize("name", ["f1", "f1_macro", "matthews_correlation"])
def test_the_multinomial_bootstrap_equals_resampling_examples(name: str) -> None:
    predictions, labels = noisy()
    draws = np.random.default_rng(2).integers(0, 400, (1000, 400))
    values = BY_COUNTS[name](*counts_of(labels[draws], predictions[draws]))
    some = [REFERENCE[name](labels[rows], predictions[rows]) for rows in draws[:5]]
    assert values[:5] == pytest.approx(some)
    low, high = confidence_interval(name, predictions, labels)
    assert (low, high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.01)
    assert standard_error(name, predictions, labels) == pytest.approx(np.std(values), rel=0.1)


def test_the_bootstrap_depends_on_seed_resamples_and_level() -> None:
    data = noisy()
    first = confidence_interval("f1", *data)
    assert confidence_interval("f1", *data) == first
    assert confidence_interval("f1", *data, seed=1) != first
    assert confidence_interval("f1", *data, resamples=50) != first
    narrow = confidence_interval("f1", *data, level=0.5)
    assert first[0] < narrow[0] < narrow[1] < first[1]
    assert standard_error("f1", *data, seed=1) != standard_error("f1", *data)
    assert standard_error("f1", *data, resamples=50) != standard_error("f1", *data)


def test_mcnemar_equals_the_exact_binomial_tail() -> None:
    labels = np.ones(30, int)
    a, b = labels.copy(), labels.copy()
    a[:2] = 0  # two examples that only b gets right
    b[2:12] = 0  # ten examples that only a gets right
    # Two-sided binomial, 2 or fewer of 12: 2 (1 + 12 + 66) / 4096.
    assert mcnemar(a, b, labels) == pytest.approx(2 * 79 / 4096)
    assert mcnemar(a, b, labels) == mcnemar(b, a, labels)
    assert mcnemar(a, a, labels) == 1.0


def test_mcnemar_approaches_the_corrected_chi_square_for_many_examples() -> None:
    labels = np.ones(4000, int)
    a, b = labels.copy(), labels.copy()
    a[:900], b[900:1900] = 0, 0
    corrected = (abs(900 - 1000) - 1) ** 2 / 1900
    assert mcnemar(a, b, labels) == pytest.approx(chi2.sf(corrected, 1), rel=0.01)


def test_agreement_counts_equal_predictions_right_or_wrong() -> None:
    assert agreement([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75


def test_compare_combines_metric_interval_and_paired_test() -> None:
    predictions, labels = noisy()
    found = compare("f1", predictions, labels, dense=labels)
    assert found.value == compute_metric("f1", predictions, labels)
    assert found.drop == pytest.approx(1 - found.value)
    assert found.agreement == agreement(predictions, labels)
    assert found.mcnemar_p == mcnemar(predictions, labels, labels)
    assert (found.low, found.high) == confidence_interval("f1", predictions, labels)
    assert (found.n, found.metric) == (400, "f1")
    assert found.to_dict()["standard_error"] == standard_error("f1", predictions, labels)
    changed = compare("f1", predictions, labels, level=0.5, seed=3, resamples=60)
    assert changed.low > found.low
    assert (
        changed.low
        == confidence_interval("f1", predictions, labels, level=0.5, seed=3, resamples=60)[0]
    )
    assert (changed.drop, changed.agreement, changed.mcnemar_p) == (None, None, None)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "empty"),
        ([[0.0, np.nan], [0.0, 1.0]], [0, 1], "1 of 2 predictions are NaN"),
        ([0, 1, 1], [0, 1], "3 predictions for 2"),
        ([0.5, 1.0], [0, 1], "whole numbers"),
        ([-1, 0], [0, 1], "whole numbers"),
        (np.zeros((2, 2, 2)), [0, 1], "shape"),
    ],
)
def test_refuses_empty_nan_mismatched_and_fractional_predictions(
    predictions: Any, references: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        compute_metric("accuracy", predictions, references)


def test_refuses_a_level_outside_0_to_1() -> None:
    with pytest.raises(ConfigError, match="level"):
        confidence_interval("accuracy", [0], [0], level=95)
