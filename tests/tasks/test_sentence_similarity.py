"""Embeddings: pairs as users have them, metrics against scipy and sentence-transformers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr

from hfcompress.data.config import DataConfig
from hfcompress.data.pairs import pair_columns, pair_examples
from hfcompress.errors import ConfigError, DataError
from hfcompress.measure.ranking import kept_neighbours
from hfcompress.tasks.registry import find_task
from hfcompress.tasks.sentence_similarity import SENTENCE_SIMILARITY, Pairs
from tests.tiny_tokenizers import tiny_tokenizer

RANDOM = np.random.default_rng(0)
COLUMNS = {"sentence1": ["good film", "a plot", "the cast"],
           "sentence2": ["a plot", "bad music", "good film"],
           "score": [4.5, 0.0, 2.0]}  # fmt: skip
QUERIES = {"query": ["q one", "q one", "q two", "q three"],
           "passage": ["p a", "p b", "p a", "p b"], "label": [1, 0, 1, 0]}  # fmt: skip


def data(path: Path, columns: dict[str, Any]) -> DataConfig:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return DataConfig(path=str(path))


def random_pairs(texts: int = 30, count: int = 60) -> tuple[np.ndarray, Pairs]:
    vectors = RANDOM.normal(size=(texts, 8)).astype(np.float32)
    first, second = RANDOM.integers(0, texts, (2, count))
    first[0], second[0] = texts - 1, 0
    return vectors, Pairs(first, second, RANDOM.integers(0, 6, count).astype(np.float64))


def test_each_different_text_is_encoded_once(tmp_path: Path) -> None:
    examples = pair_examples(data(tmp_path / "pairs.csv", COLUMNS), need_train=False)
    assert examples.kind == "similarity"
    encoded = SENTENCE_SIMILARITY.encode(examples, examples.eval, tiny_tokenizer(), None)
    assert len(encoded) == 5 - 1
    pairs = SENTENCE_SIMILARITY.references(encoded, [])
    assert pairs.first.tolist() == [0, 1, 2]
    assert pairs.second.tolist() == [1, 3, 0]
    assert pairs.scores.tolist() == COLUMNS["score"]


def test_correlations_are_those_of_scipy() -> None:
    vectors, pairs = random_pairs()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit[pairs.first] * unit[pairs.second]).sum(1)
    for name, theirs in (("spearman", spearmanr), ("pearson", pearsonr)):
        expected = theirs(cosines, pairs.scores).statistic
        assert SENTENCE_SIMILARITY.metric(name, vectors, pairs) == pytest.approx(expected, abs=1e-6)


def test_quality_compares_with_dense_on_the_same_pairs() -> None:
    vectors, pairs = random_pairs()
    noisy = vectors + RANDOM.normal(size=vectors.shape).astype(np.float32)
    found = SENTENCE_SIMILARITY.quality("spearman", noisy, pairs, vectors)
    values = [SENTENCE_SIMILARITY.metric("spearman", one, pairs) for one in (noisy, vectors)]
    assert found.value == pytest.approx(values[0])
    assert found.drop == pytest.approx(values[1] - values[0])
    assert found.agreement == pytest.approx(kept_neighbours(noisy, vectors))
    assert found.n == 60
    same = SENTENCE_SIMILARITY.quality("spearman", vectors, pairs, vectors)
    assert (same.drop, same.agreement, same.drop_low) == (0, 1, 0)


def test_retrieval_is_that_of_sentence_transformers() -> None:
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    vectors, pairs = random_pairs(texts=40)
    first, second = pairs.first % 10, 10 + pairs.second % 30
    pairs = Pairs(first, np.concatenate([second[:-1], [39]]), pairs.scores)
    relevant: dict[str, set[str]] = {str(query): set() for query in first}
    for query, passage, score in zip(first, pairs.second, pairs.scores, strict=True):
        if score > 0:
            relevant[str(query)].add(str(passage))
    relevant = {query: passages for query, passages in relevant.items() if passages}
    evaluator = evaluation.InformationRetrievalEvaluator(
        {query: query for query in relevant}, {str(p): str(p) for p in np.unique(pairs.second)},
        relevant, accuracy_at_k=[1], precision_recall_at_k=[1, 10], mrr_at_k=[10],
        ndcg_at_k=[10], map_at_k=[100], score_functions=None,
    )  # fmt: skip

    class Lookup:
        similarity_fn_name = "cosine"
        model_card_data = None

        def encode(self, texts: list[str], **kwargs: object) -> Any:
            import torch

            return torch.from_numpy(vectors[[int(text) for text in texts]])

        encode_query = encode_document = encode

    from sentence_transformers.util import cos_sim

    evaluator.score_functions, evaluator.score_function_names = {"cosine": cos_sim}, ["cosine"]
    found = evaluator.compute_metrices(Lookup())["cosine"]
    binary = Pairs(pairs.first, pairs.second, (pairs.scores > 0).astype(np.float64))
    for name, theirs in (("mrr@10", found["mrr@k"][10]), ("ndcg@10", found["ndcg@k"][10]),
                         ("recall@1", found["recall@k"][1]), ("recall@10", found["recall@k"][10]),
                         ("map", found["map@k"][100])):  # fmt: skip
        ours = SENTENCE_SIMILARITY.metric(name, vectors, binary)
        assert ours == pytest.approx(theirs, abs=1e-6), name


def test_queries_without_a_relevant_passage_are_left_out_and_counted(tmp_path: Path) -> None:
    examples = pair_examples(data(tmp_path / "queries.csv", QUERIES), need_train=False)
    assert examples.kind == "retrieval"
    assert examples.dropped == {"eval: queries without a relevant passage": 1}
    assert set(examples.eval["query"]) == {"q one", "q two"}
    columns = {**QUERIES, "label": [0, 0, 0, 0]}
    with pytest.raises(DataError, match="no query of the eval side has a relevant passage"):
        pair_examples(data(tmp_path / "none.csv", columns), need_train=False)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sentence1": ["a"], "sentence2": ["b"], "id": [7]}, "data.label is not given"),
        ({"text": ["a"], "score": [1]}, "no two columns of texts"),
        ({**COLUMNS, "score": [1, "high", 2]}, "'high' in column 'score' is not a score"),
        ({**QUERIES, "label": [1, -1, 0, 0]}, "is not a relevance from 0"),
    ],
)
def test_refuses_other_data(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        pair_examples(data(tmp_path / "pairs.csv", columns), need_train=False)


def test_positive_pairs_need_no_score() -> None:
    rows = Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})
    found = pair_columns(DataConfig(path="x"), rows)
    assert (found.score, found.kind) == (None, "retrieval")


def test_refuses_vectors_of_other_texts_and_other_metrics() -> None:
    vectors, pairs = random_pairs()
    with pytest.raises(DataError, match="got 29 vectors for 30 texts"):
        SENTENCE_SIMILARITY.metric("spearman", vectors[:-1], pairs)
    with pytest.raises(DataError, match="NaN"):
        SENTENCE_SIMILARITY.metric("spearman", vectors * np.float32(np.nan), pairs)
    with pytest.raises(DataError, match="is not a metric of sentence-similarity"):
        SENTENCE_SIMILARITY.metric("accuracy", vectors, pairs)


def test_the_task_has_the_names_that_people_use() -> None:
    for name in ("sentence-similarity", "embeddings", "feature-extraction"):
        assert find_task(name) is SENTENCE_SIMILARITY
    with pytest.raises(ConfigError):
        find_task("sentence-similarities-of-all-kinds")
