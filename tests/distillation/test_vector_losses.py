"""Losses on vectors against loops in float64; zero where student and teacher agree."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hfcompress.distillation.vector_losses import (
    cosine_distance,
    listwise_divergence,
    margin_distance,
    ranking_divergence,
    similarity_distance,
)
from hfcompress.errors import ModelError

torch.manual_seed(0)
STUDENT = torch.randn(6, 4, dtype=torch.float64)
TEACHER = torch.randn(6, 4, dtype=torch.float64)
WIDER = torch.randn(6, 9, dtype=torch.float64)
QUERIES = torch.tensor([0, 0, 1, 1, 1, 2])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def divergence(teacher: list[float], student: list[float]) -> float:
    pairs = zip(softmax(teacher), softmax(student), strict=True)
    return sum(p * math.log(p / q) for p, q in pairs)


def others(vectors: Tensor, row: int) -> list[float]:
    return [cosine(vectors[row], vectors[other]) for other in range(6) if other != row]


def test_cosine_distance() -> None:
    expected = sum(1 - cosine(STUDENT[row], TEACHER[row]) for row in range(6)) / 6
    assert float(cosine_distance(STUDENT, TEACHER)) == pytest.approx(expected)
    assert float(cosine_distance(3 * TEACHER, TEACHER)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ModelError, match="differ in shape"):
        cosine_distance(STUDENT, WIDER)


def test_similarity_distance_compares_all_pairs_whatever_the_width() -> None:
    pairs = [
        (own - theirs) ** 2
        for row in range(6)
        for own, theirs in zip(others(STUDENT, row), others(WIDER, row), strict=True)
    ]
    expected = sum(pairs) / len(pairs)
    assert float(similarity_distance(STUDENT, WIDER)) == pytest.approx(expected)
    assert float(similarity_distance(2 * WIDER, WIDER)) == pytest.approx(0, abs=1e-12)


def test_ranking_divergence_is_over_the_other_texts() -> None:
    expected = sum(
        divergence([c / 0.1 for c in others(WIDER, row)], [c / 0.1 for c in others(STUDENT, row)])
        for row in range(6)
    ) / 6  # fmt: skip
    assert float(ranking_divergence(STUDENT, WIDER, 0.1)) == pytest.approx(expected)
    assert float(ranking_divergence(WIDER, WIDER)) == pytest.approx(0, abs=1e-12)


def test_margins_are_of_passages_of_one_query() -> None:
    student, teacher = STUDENT[:, 0], TEACHER[:, 0]
    pairs = [(0, 1), (2, 3), (2, 4), (3, 4)]
    margins = [float((student[a] - student[b]) - (teacher[a] - teacher[b])) for a, b in pairs]
    expected = sum(margin**2 for margin in margins) / 4
    assert float(margin_distance(student, teacher, QUERIES)) == pytest.approx(expected)
    assert float(margin_distance(teacher + 5, teacher, QUERIES)) == pytest.approx(0, abs=1e-12)


def test_listwise_divergence_leaves_single_passages_out() -> None:
    student, teacher = STUDENT[:, 0], TEACHER[:, 0]
    lists = [(0, 1), (2, 3, 4)]
    expected = sum(
        divergence([float(teacher[p]) / 2 for p in part], [float(student[p]) / 2 for p in part])
        for part in lists
    ) / 2  # fmt: skip
    assert float(listwise_divergence(student, teacher, QUERIES, 2.0)) == pytest.approx(expected)


@pytest.mark.parametrize("rows", [1, 2])
def test_small_batches_keep_the_graph(rows: int) -> None:
    student = STUDENT[:rows].clone().requires_grad_()
    queries = torch.arange(rows)
    total = (
        similarity_distance(student, TEACHER[:rows])
        + ranking_divergence(student, TEACHER[:rows])
        + margin_distance(student[:, 0], TEACHER[:rows, 0], queries)
        + listwise_divergence(student[:, 0], TEACHER[:rows, 0], queries)
    )
    total.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    total = (
        cosine_distance(student, teacher)
        + similarity_distance(student, teacher)
        + ranking_divergence(student, teacher)
        + margin_distance(student[:, 0], teacher[:, 0], QUERIES)
    )
    total.backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    assert student.grad is not None
