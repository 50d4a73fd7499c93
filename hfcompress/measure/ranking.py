"""Metrics of ranked passages and of vectors: MAP, MRR, nDCG, recall, rank correlation, neighbours.

Equal scores count against the model: passages that are not relevant go first among them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from hfcompress.config import nearest
from hfcompress.errors import DataError

Floats = NDArray[np.float64]
RANKING_METRICS = ("map", "mrr", "mrr@10", "ndcg@10", "recall@1", "recall@5", "recall@10")
"""Names that `ranking_metric` is usually asked for; any number may follow the @."""
_NAME = re.compile(r"(map|mrr|ndcg|recall)(?:@([1-9][0-9]*))?")
NEIGHBOURS = 10
# Rows of a matrix of similarities that are computed at once.
_CHUNK = 1024


def ranked_relevance(scores: Floats, relevance: Floats) -> Floats:
    """Return the relevances of one query's passages, the highest score first.

    Args:
        scores: [passages].
        relevance: [passages], 0 where a passage is not relevant.
    """
    ranked: Floats = relevance[np.lexsort((relevance, -scores))]
    return ranked


def is_ranking_metric(name: str) -> bool:
    """Return whether `ranking_metric` knows a name."""
    found = _NAME.fullmatch(name)
    return found is not None and not (found[2] is None and found[1] in ("ndcg", "recall"))


def ranking_metric(name: str, ranked: Floats, relevant: int | None = None) -> float:
    """Return a metric of one query.

    Args:
        name: ``map``, ``mrr``, ``ndcg@10``, ``recall@5`` ...; the number is how many passages
            count.
        ranked: relevances in the order of the scores, from `ranked_relevance`.
        relevant: number of relevant passages where ``ranked`` has only the first ones.

    Raises:
        DataError: another name.
    """
    if not is_ranking_metric(name):
        raise DataError(f"{name!r} is not a metric of rankings{nearest(name, RANKING_METRICS)}")
    found = _NAME.fullmatch(name)
    assert found is not None
    top = ranked[: int(found[2])] if found[2] else ranked
    hits = np.flatnonzero(top > 0)
    total = int(np.count_nonzero(ranked > 0)) if relevant is None else relevant
    if found[1] == "recall":
        return len(hits) / total if total else 0.0
    if not len(hits):
        return 0.0
    if found[1] == "mrr":
        return float(1 / (hits[0] + 1))
    if found[1] == "map":
        return float((np.arange(1, len(hits) + 1) / (hits + 1)).sum() / min(total, len(top)))
    best = np.sort(ranked)[::-1][: len(top)]
    return _gain(top) / _gain(best)


def _gain(relevances: Floats) -> float:
    return float((relevances / np.log2(np.arange(2, len(relevances) + 2))).sum())


def spearman(first: Floats, second: Floats) -> float:
    """Return the rank correlation, equal values with their mean rank; 0 where one is constant."""
    ranks = [rankdata(values) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    size = np.sqrt(np.square(centred[0]).sum() * np.square(centred[1]).sum())
    return float((centred[0] * centred[1]).sum() / size) if size > 0 else 0.0


def unit_vectors(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return vectors of length 1; a vector of zeros stays as it is.

    Args:
        vectors: [texts, size].
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def nearest_neighbours(vectors: NDArray[np.floating], count: int = NEIGHBOURS) -> NDArray[np.int64]:
    """Return the nearest other texts of each text by cosine, [texts, count], the nearest first.

    Args:
        vectors: [texts, size].
        count: how many; at most one less than there are texts.
    """
    unit = unit_vectors(vectors)
    count = min(count, len(unit) - 1)
    found = np.empty((len(unit), count), np.int64)
    for start in range(0, len(unit), _CHUNK):
        part = unit[start : start + _CHUNK] @ unit.T
        part[np.arange(len(part)), np.arange(start, start + len(part))] = -np.inf
        found[start : start + _CHUNK] = np.argsort(-part, axis=1, kind="stable")[:, :count]
    return found


def kept_neighbours(
    vectors: NDArray[np.floating], dense: NDArray[np.floating], count: int = NEIGHBOURS
) -> float:
    """Return the share of each text's nearest neighbours by ``dense`` that ``vectors`` keep.

    Args:
        vectors: [texts, size].
        dense: of the same texts; the size may differ.
        count: neighbours of each text.
    """
    if len(vectors) < 2:
        return 1.0
    pairs = zip(nearest_neighbours(vectors, count), nearest_neighbours(dense, count), strict=True)
    return float(np.mean([len(np.intersect1d(own, other)) / len(own) for own, other in pairs]))


def by_query(queries: Sequence[int] | NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the places of each query's passages, in the order of the queries' numbers.

    Args:
        queries: number of each passage's query.
    """
    numbers = np.asarray(queries)
    order = np.argsort(numbers, kind="stable")
    _, starts = np.unique(numbers[order], return_index=True)
    return list(np.split(order, starts[1:]))
