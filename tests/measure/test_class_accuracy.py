"""Accuracy by class, compared with a count by hand and with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from hfcompress.errors import DataError
from hfcompress.measure.evaluation import class_accuracy


def test_class_accuracy_equals_a_count_by_hand() -> None:
    labels = [0, 0, 0, 2, 2]
    found = class_accuracy([0, 1, 0, 2, 2], labels, [0, 0, 0, 2, 1], ["cat", "dog", "owl"])
    assert found == [
        {"name": "cat", "n": 3, "value": pytest.approx(2 / 3), "dense": 1.0},
        {"name": "owl", "n": 2, "value": 1.0, "dense": 0.5},
    ]


def test_class_accuracy_equals_recall_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    chance = np.random.default_rng(0)
    labels, logits = chance.integers(0, 5, 200), chance.normal(size=(200, 5))
    found = class_accuracy(logits, labels, labels, list("abcde"))
    expected = metrics.recall_score(labels, logits.argmax(1), average=None)
    assert [entry["value"] for entry in found] == pytest.approx(expected.tolist())
    assert {entry["dense"] for entry in found} == {1.0}
    assert sum(entry["n"] for entry in found) == 200


def test_refuses_other_lengths_and_labels_without_a_name() -> None:
    with pytest.raises(DataError, match="2 predictions for 3 examples"):
        class_accuracy([0, 1], [0, 1, 1], [0, 1, 1], ["a", "b"])
    with pytest.raises(DataError, match="label 2 has no name"):
        class_accuracy([0, 1], [0, 2], [0, 1], ["a", "b"])
