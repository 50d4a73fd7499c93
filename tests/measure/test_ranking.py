"""Ranking metrics against scikit-learn, scipy and loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from hfcompress.errors import DataError
from hfcompress.measure.ranking import (
    by_query,
    is_ranking_metric,
    kept_neighbours,
    nearest_neighbours,
    ranked_relevance,
    ranking_metric,
    spearman,
)

RANDOM = np.random.default_rng(0)


def rankings(count: int = 30) -> list[tuple[np.ndarray, np.ndarray]]:
    found = []
    for _ in range(count):
        size = int(RANDOM.integers(2, 40))
        relevance = RANDOM.integers(0, 3, size).astype(np.float64)
        relevance[RANDOM.integers(size)] = 1
        found.append((RANDOM.permutation(size).astype(np.float64), relevance))
    return found


def test_metrics_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for scores, relevance in rankings():
        ranked = ranked_relevance(scores, relevance)
        expected = metrics.average_precision_score(relevance > 0, scores)
        assert ranking_metric("map", ranked) == pytest.approx(expected)
        for k in (1, 5, 10):
            expected = metrics.ndcg_score([relevance], [scores], k=k)
            assert ranking_metric(f"ndcg@{k}", ranked) == pytest.approx(expected)


def test_reciprocal_rank_and_recall_are_those_of_a_loop() -> None:
    for scores, relevance in rankings():
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        first = next(rank for rank, place in enumerate(order, 1) if relevance[place] > 0)
        ranked = ranked_relevance(scores, relevance)
        assert ranking_metric("mrr", ranked) == pytest.approx(1 / first)
        assert ranking_metric("mrr@3", ranked) == pytest.approx(1 / first if first <= 3 else 0)
        hits = sum(relevance[place] > 0 for place in order[:5])
        assert ranking_metric("recall@5", ranked) == pytest.approx(hits / (relevance > 0).sum())


def test_equal_scores_count_against_the_model() -> None:
    ranked = ranked_relevance(np.zeros(4), np.array([1.0, 0, 0, 0]))
    assert ranking_metric("mrr", ranked) == 1 / 4
    assert ranking_metric("map", ranked) == 1 / 4


def test_a_query_without_relevant_passages_scores_nothing() -> None:
    ranked = np.zeros(5)
    assert [ranking_metric(name, ranked) for name in ("map", "mrr", "ndcg@10", "recall@1")] == [
        0
    ] * 4


@pytest.mark.parametrize("name", ["ndcg", "recall", "recall@0", "hits@3", "map@x"])
def test_refuses_other_metrics(name: str) -> None:
    assert not is_ranking_metric(name)
    with pytest.raises(DataError, match="is not a metric of rankings"):
        ranking_metric(name, np.ones(3))


def test_spearman_is_that_of_scipy() -> None:
    for _ in range(10):
        first, second = RANDOM.normal(size=50), RANDOM.integers(0, 6, 50).astype(np.float64)
        expected = spearmanr(first, second).statistic
        assert spearman(first, second) == pytest.approx(expected)
    assert spearman(np.ones(5), np.arange(5.0)) == 0


def test_neighbours_are_those_of_a_loop() -> None:
    vectors = RANDOM.normal(size=(25, 6)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = nearest_neighbours(vectors, 4)
    for row in range(25):
        others = sorted((other for other in range(25) if other != row),
                        key=lambda other: -float(unit[row] @ unit[other]))  # fmt: skip
        assert list(found[row]) == others[:4]
    noisy = vectors + 0.7 * RANDOM.normal(size=vectors.shape).astype(np.float32)
    changed = nearest_neighbours(noisy, 4)
    shares = [len(set(a) & set(b)) / 4 for a, b in zip(found, changed, strict=True)]
    kept = kept_neighbours(noisy, vectors, 4)
    assert kept == pytest.approx(float(np.mean(shares)))
    assert 0 < kept < 1
    assert kept_neighbours(3 * vectors, vectors, 4) == 1
    assert kept_neighbours(vectors[:1], vectors[:1]) == 1


def test_passages_by_query() -> None:
    found = by_query([3, 1, 3, 2, 1])
    assert [list(places) for places in found] == [[1, 4], [3], [0, 2]]
