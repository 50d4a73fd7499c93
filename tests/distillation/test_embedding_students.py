"""Students of embedding models: their layout, the losses on their vectors, a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.config import DistillationLossConfig
from hfcompress.distillation.layer_loss import VectorProjection
from hfcompress.distillation.student import make_student
from hfcompress.distillation.teacher_loss import TeacherLoss
from hfcompress.distillation.trainer import DistillationTrainer
from hfcompress.distillation.vector_losses import (
    cosine_distance,
    ranking_divergence,
    similarity_distance,
)
from hfcompress.errors import ConfigError, ModelError
from hfcompress.models.modeling_embedding import EmbeddingModel
from tests.tiny_embeddings import TEXTS, tiny_embedder
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

ALL = DistillationLossConfig(similarity_weight=2, ranking_weight=3, soft_weight=1)


def batch() -> dict[str, torch.Tensor]:
    return dict(tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt"))


@pytest.mark.parametrize("dense", [None, 8])
def test_a_student_with_all_layers_gives_the_teachers_vectors(dense: int | None) -> None:
    teacher = tiny_embedder(dense=dense)
    student = make_student(teacher, layers=2)
    assert isinstance(student, EmbeddingModel)
    with torch.no_grad():
        torch.testing.assert_close(student(**batch()).logits, teacher(**batch()).logits)


def test_refuses_a_dense_layer_for_another_width() -> None:
    with pytest.raises(ModelError, match="reads 32 values and the student pools 16"):
        make_student(tiny_embedder(dense=8), hidden=16)


def test_terms_are_the_losses_on_vectors() -> None:
    teacher = tiny_embedder()
    student = make_student(teacher, layers=1)
    outputs = student(**batch())
    with TeacherLoss(student, teacher, ALL) as terms:
        found = terms(student, batch(), outputs)
    with torch.no_grad():
        own, theirs = outputs.logits, teacher(**batch()).logits
        expected = {
            "soft_loss": cosine_distance(own, theirs),
            "similarity_loss": 2 * similarity_distance(own, theirs),
            "ranking_loss": 3 * ranking_divergence(own, theirs),
        }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value)
        assert value > 0


def test_classifiers_have_no_vectors_to_compare() -> None:
    student, teacher = tiny_bert(seed=0), tiny_bert(seed=1)
    with TeacherLoss(student, teacher, ALL) as terms:
        outputs = student(**batch())
        with pytest.raises(ConfigError, match="similarity_weight compares vectors of texts"):
            terms(student, batch(), outputs)


def train(
    student: EmbeddingModel, teacher: EmbeddingModel, folder: Path, **options: Any
) -> DistillationTrainer:
    tokenizer = tiny_tokenizer()
    args = DistillationArguments(
        output_dir=str(folder), alpha=1.0, per_device_train_batch_size=5, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
        **{"max_steps": 12, "learning_rate": 3e-3, "similarity_weight": 1.0, **options},
    )  # fmt: skip
    trainer = DistillationTrainer(
        student, args, teacher=teacher, train_dataset=Dataset.from_dict(dict(tokenizer(TEXTS))),
        data_collator=lambda items: dict(tokenizer.pad(items, return_tensors="pt")),
    )  # fmt: skip
    trainer.train()
    student.eval()  # type: ignore[no-untyped-call]
    return trainer


def test_a_student_comes_closer_without_labels(tmp_path: Path) -> None:
    teacher = tiny_embedder()
    student = make_student(teacher, layers=1)
    assert isinstance(student, EmbeddingModel)
    with torch.no_grad():
        expected = teacher(**batch()).logits
        before = float(cosine_distance(student(**batch()).logits, expected))
        torch.manual_seed(0)
        with torch.enable_grad():
            train(student, teacher, tmp_path)
        after = float(cosine_distance(student(**batch()).logits, expected))
    assert after < 0.7 * before


def test_vectors_of_another_size_are_projected(tmp_path: Path) -> None:
    teacher = tiny_embedder()
    student = make_student(teacher, hidden=16)
    assert isinstance(student, EmbeddingModel)
    torch.manual_seed(0)
    trainer = train(student, teacher, tmp_path, max_steps=60)
    layers: Any = trainer.teaching.layers[0]
    with torch.no_grad():
        vectors, expected = student(**batch()).logits, teacher(**batch()).logits
        assert float(cosine_distance(layers.vectors(vectors), expected)) < 0.15
    assert vectors.shape == (5, 16)
    with pytest.raises(ModelError, match="differ in shape; give vectors of one size"):
        cosine_distance(vectors, expected)


@pytest.mark.parametrize(("own", "theirs"), [(6, 10), (10, 6)])
def test_a_projection_of_vectors_has_orthonormal_columns_or_rows(own: int, theirs: int) -> None:
    torch.manual_seed(0)
    project = VectorProjection(own, theirs)
    project.weight.data.add_(torch.randn(theirs, own))
    vectors = torch.randn(4, own)
    found = project(vectors)
    assert found.shape == (4, theirs)
    if own < theirs:
        torch.testing.assert_close(found @ found.T, vectors @ vectors.T)
    else:
        whole = project(torch.eye(own))
        torch.testing.assert_close(whole.T @ whole, torch.eye(theirs))
    found.sum().backward()
    assert project.weight.grad is not None
    assert project.weight.grad.abs().sum() > 0
