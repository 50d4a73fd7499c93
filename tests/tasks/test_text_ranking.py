"""Rerankers: queries as users have them, metrics against scikit-learn."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hfcompress.data.config import DataConfig
from hfcompress.data.load import Examples, hold_out
from hfcompress.errors import DataError, ModelError
from hfcompress.tasks.registry import find_task
from hfcompress.tasks.text_ranking import TEXT_RANKING, Rankings
from tests.tasks.ranked import ranked_rows
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

RANDOM = np.random.default_rng(0)


def load(rows: list[dict[str, Any]] | None = None, **options: Any) -> Examples:
    made = Dataset.from_list(ranked_rows() if rows is None else rows)
    config = DataConfig.from_dict({"path": "rows", "eval_fraction": 0.5, **options})
    return TEXT_RANKING.load(config, True, {"train": made})


def random_rankings(pairs: int = 200, queries: int = 12) -> tuple[np.ndarray, np.ndarray, Rankings]:
    numbers = RANDOM.integers(0, queries, pairs)
    relevance = (RANDOM.random(pairs) < 0.3).astype(np.float64)
    return numbers, RANDOM.normal(size=(pairs, 1)).astype(np.float32), Rankings.of(
        numbers, relevance
    )  # fmt: skip


def test_metrics_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, ndcg_score

    numbers, scores, asked = random_rankings()
    found = defaultdict(list)
    for query in np.unique(numbers):
        relevance, own = (part[numbers == query] for part in (asked.relevance, scores[:, 0]))
        found["map"].append(average_precision_score(relevance, own))
        found["ndcg@10"].append(ndcg_score([relevance], [own], k=10))
        found["mrr"].append(1 / (1 + np.flatnonzero(relevance[np.argsort(-own)])[0]))
    for name, values in found.items():
        assert TEXT_RANKING.metric(name, scores, asked) == pytest.approx(np.mean(values)), name


def test_quality_compares_with_dense_over_queries() -> None:
    numbers, scores, asked = random_rankings()
    dense = scores.copy()
    dense[asked.queries[3], 0] *= -1
    found = TEXT_RANKING.quality("map", scores, asked, dense)
    values = [TEXT_RANKING.metric("map", one, asked) for one in (scores, dense)]
    assert found.n == len(np.unique(numbers))
    assert found.value == pytest.approx(values[0])
    assert found.drop == pytest.approx(values[1] - values[0])
    assert found.agreement == pytest.approx(1 - 1 / found.n)
    low, drop, high = (found.to_dict()[name] for name in ("drop_low", "drop", "drop_high"))
    assert sorted([low, drop, high]) == [low, drop, high]  # type: ignore[type-var]


def test_queries_without_a_relevant_passage_are_left_out_and_counted() -> None:
    rows = ranked_rows(4)
    for row in rows[:5]:
        row["label"] = 0
    made = Dataset.from_list(rows)
    examples = TEXT_RANKING.load(DataConfig(path="rows"), False, {"validation": made})
    assert examples.dropped == {"eval: queries without a relevant passage": 1}
    assert rows[0]["query"] not in examples.eval["query"]
    encoded = TEXT_RANKING.encode(examples, made, tiny_tokenizer(), None)
    assert [list(places) for places in TEXT_RANKING.references(encoded, []).queries] == [
        list(range(5 * query, 5 * query + 5)) for query in (1, 2, 3)
    ]


def test_passages_of_a_query_stay_together() -> None:
    examples = load(eval_fraction=0.4)
    assert examples.train is not None
    sides = [set(rows["query"]) for rows in (examples.train, examples.eval)]
    assert not sides[0] & sides[1]
    parted = hold_out(examples, DataConfig(path="rows", choose=0.3))
    assert parted.train is not None
    assert parted.choose is not None
    assert not set(parted.train["query"]) & set(parted.choose["query"])
    limited = load(max_eval=12, max_train=3)
    assert limited.train is not None
    assert (len(limited.eval), len(limited.train)) == (10, 5)


def test_pairs_are_encoded_with_relevance_from_0_to_1() -> None:
    rows = [{**row, "label": 3 * row["label"]} for row in ranked_rows()]
    examples = load(rows)
    assert examples.notes == ("training divides relevances by the greatest, 3",)
    encoded = TEXT_RANKING.encode(examples, examples.eval, tiny_tokenizer(), None)
    assert encoded.labels.tolist() == [[value / 3] for value in examples.eval["label"]]
    first = examples.eval[0]
    both = tiny_tokenizer()(first["query"], first["passage"])
    assert encoded.rows[0]["input_ids"] == both["input_ids"]
    part = encoded.select(np.arange(5, 10))
    assert part.groups is not None
    assert set(part.groups) == {1}


def test_refuses_rankings_that_cannot_be_measured() -> None:
    relevant = [{**row, "label": 1} for row in ranked_rows()]
    with pytest.raises(DataError, match="every passage of the eval side is relevant"):
        load(relevant)
    with pytest.raises(DataError, match="no query of the eval side has a relevant passage"):
        load([{**row, "label": 0} for row in relevant])
    with pytest.raises(DataError, match="is not a relevance from 0"):
        load([{**row, "label": -1} for row in relevant])
    _, scores, asked = random_rankings()
    with pytest.raises(DataError, match="outputs of shape \\(199, 1\\) for 200 pairs"):
        TEXT_RANKING.metric("map", scores[1:], asked)
    with pytest.raises(DataError, match="NaN"):
        TEXT_RANKING.metric("map", scores * np.float32(np.nan), asked)
    with pytest.raises(DataError, match="'accuracy' is not a metric of text-ranking"):
        TEXT_RANKING.metric("accuracy", scores, asked)
    with pytest.raises(ModelError, match="gives 3 labels and a reranker one score"):
        TEXT_RANKING.check_head(tiny_bert(3).config, "model", "ranking")


def test_the_task_has_the_names_that_people_use() -> None:
    for name in ("text-ranking", "reranking", "cross-encoder"):
        assert find_task(name) is TEXT_RANKING
