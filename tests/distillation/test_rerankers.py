"""Students of rerankers: losses on a query's passages, their order in training, the Python call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hfcompress.distillation.config import DistillationLossConfig
from hfcompress.distillation.sampling import TOGETHER, QuerySampler
from hfcompress.distillation.student import make_student
from hfcompress.distillation.teacher_loss import TeacherLoss
from hfcompress.distillation.train import train_with_distillation
from hfcompress.distillation.vector_losses import listwise_divergence, margin_distance
from hfcompress.errors import ConfigError, DataError
from hfcompress.models.cross_encoder import AutoCrossEncoder
from tests.tasks.ranked import PAIRS, ranked_rows, reranker_folder
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

BOTH = DistillationLossConfig(soft_weight=0, margin_weight=2, listwise_weight=3)
QUERIES = torch.tensor([0, 1, 0])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoCrossEncoder.from_pretrained(reranker_folder(tmp_path_factory.mktemp("teacher")))


def batch() -> dict[str, torch.Tensor]:
    first, second = ([pair[side] for pair in PAIRS] for side in (0, 1))
    return dict(tiny_tokenizer()(first, second, padding=True, return_tensors="pt"))


def test_terms_are_the_losses_on_a_querys_passages(teacher: Any) -> None:
    student: Any = make_student(teacher, layers=1)
    outputs = student(**batch())
    with TeacherLoss(student, teacher, BOTH) as terms:
        found = terms(student, {**batch(), "query": QUERIES}, outputs)
        with pytest.raises(DataError, match="add a column 'query'"):
            terms(student, batch(), outputs)
    own, theirs = outputs.logits[:, 0], teacher(**batch()).logits[:, 0]
    expected = {
        "margin_loss": 2 * margin_distance(own, theirs, QUERIES),
        "listwise_loss": 3 * listwise_divergence(own, theirs, QUERIES),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
        assert value > 0


def test_classifiers_have_no_scores_to_compare() -> None:
    student = tiny_bert(seed=0)
    refused = pytest.raises(ConfigError, match="margin_weight compares scores of passages")
    with TeacherLoss(student, tiny_bert(seed=1), BOTH) as terms, refused:
        terms(student, {**batch(), "query": QUERIES}, student(**batch()))


def test_rows_of_a_query_follow_each_other_in_another_order_each_epoch() -> None:
    queries = np.repeat(np.arange(6), 11)
    sampler = QuerySampler(queries.tolist(), seed=3)
    orders = [list(sampler) for _ in range(2)]
    for order in orders:
        assert sorted(order) == list(range(66))
        changes = np.count_nonzero(np.diff(queries[order]))
        assert changes < 12  # 6 queries in two parts each
    assert orders[0] != orders[1]
    sampler.set_epoch(0)
    assert list(sampler) == orders[0]
    assert len(sampler) == 66
    assert TOGETHER == 8


def test_a_student_learns_to_rank_from_the_teacher_alone(teacher: Any, tmp_path: Path) -> None:
    from hfcompress.tasks.text_ranking import TEXT_RANKING

    student: Any = make_student(teacher, layers=1)
    rows = Dataset.from_list(ranked_rows(6))

    def distance() -> float:
        both = [rows[name][:] for name in ("query", "passage")]
        shown = tiny_tokenizer()(*both, padding=True, return_tensors="pt")
        queries = torch.arange(6).repeat_interleave(5)
        with torch.no_grad():
            scores = [model(**shown).logits[:, 0] for model in (student, teacher)]
        return float(margin_distance(scores[0], scores[1], queries))

    before = distance()
    trainer = train_with_distillation(
        student, teacher, rows, tiny_tokenizer(), output_dir=str(tmp_path), num_train_epochs=20,
        per_device_train_batch_size=10, learning_rate=3e-3, alpha=1.0, margin_weight=1.0,
        listwise_weight=1.0, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    assert isinstance(trainer._get_train_sampler(), QuerySampler)
    assert "margin_loss" in trainer.state.log_history[0]
    assert distance() < 0.3 * before
    assert student.config.num_labels == 1
    assert TEXT_RANKING.kind(student.config) == "ranking"
