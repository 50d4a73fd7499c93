"""Distillation losses on vectors of texts (torch only): one by one, and by their similarities.

The teacher's tensors get no gradient. Losses on similarities compare the texts of a batch with each
other, so they need no projection where widths differ.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hfcompress.errors import ModelError

RANKING_TEMPERATURE = 0.05
"""What cosines are divided by before the softmax over the other texts."""


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - cosine, mean over texts.

    Args:
        student: (texts, size).
        teacher: as the student's.

    Raises:
        ModelError: another shape.
    """
    if student.shape != teacher.shape:
        raise ModelError(
            f"vectors of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ "
            f"in shape; give vectors of one size (DistillationTrainer learns a projection)"
        )
    return (1 - F.cosine_similarity(student, teacher.detach(), dim=-1)).mean()


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the cosines of all pairs of a batch (Tung and Mori,
    1907.09682); zero for a single text.

    Args:
        student: (texts, size).
        teacher: (texts, another size).
    """
    if len(student) < 2:
        return 0.0 * student.sum()
    own, theirs = _others(student), _others(teacher.detach())
    return (own - theirs).square().mean()


def ranking_divergence(
    student: Tensor, teacher: Tensor, temperature: float = RANKING_TEMPERATURE
) -> Tensor:
    """Return KL(teacher || student) of each text's distribution over the other texts of a batch,
    the softmax of their cosines, mean over texts; zero for fewer than three.

    Args:
        student: (texts, size).
        teacher: (texts, another size).
        temperature: divides the cosines.
    """
    if len(student) < 3:
        return 0.0 * student.sum()
    own, theirs = (
        F.log_softmax(_others(vectors) / temperature, dim=-1)
        for vectors in (student, teacher.detach())
    )
    return F.kl_div(own, theirs, reduction="batchmean", log_target=True)


def margin_distance(student: Tensor, teacher: Tensor, queries: Tensor) -> Tensor:
    """Return margin-MSE (Hofstätter et al., 2010.02666): the mean squared difference of how far two
    passages of a query are apart; zero where no query has two.

    Args:
        student: (pairs,) scores.
        teacher: as the student's.
        queries: (pairs,) number of each pair's query.
    """
    same = (queries[:, None] == queries[None]).triu(1)
    if not same.any():
        return 0.0 * student.sum()
    own, theirs = (scores[:, None] - scores[None] for scores in (student, teacher.detach()))
    return (own - theirs).square()[same].mean()


def listwise_divergence(
    student: Tensor, teacher: Tensor, queries: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return KL(teacher || student) of each query's distribution over its passages, mean over
    queries with two or more.

    Args:
        student: (pairs,) scores.
        teacher: as the student's.
        queries: (pairs,) number of each pair's query.
        temperature: divides the scores.
    """
    found = []
    for query in torch.unique(queries):
        own, theirs = (
            F.log_softmax(scores[queries == query] / temperature, dim=0)
            for scores in (student, teacher.detach())
        )
        if len(own) > 1:
            found.append(F.kl_div(own, theirs, reduction="sum", log_target=True))
    return torch.stack(found).mean() if found else 0.0 * student.sum()


def _others(vectors: Tensor) -> Tensor:
    """Return the cosines of each text with the others, (texts, texts - 1)."""
    unit = F.normalize(vectors, dim=-1)
    count = len(unit)
    apart = ~torch.eye(count, dtype=torch.bool, device=unit.device)
    return (unit @ unit.T)[apart].reshape(count, count - 1)
