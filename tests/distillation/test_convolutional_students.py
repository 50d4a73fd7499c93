"""Transformers teach networks of another kind: other words, other layers, images."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.cache import TeacherCache
from hfcompress.distillation.student import make_student
from hfcompress.distillation.trainer import DistillationTrainer
from hfcompress.errors import ModelError
from tests.tiny_models import shrinkable_model
from tests.tiny_tokenizers import sentence, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


class LetterCnn(nn.Module):
    """Reads letters, not words: a tokenizer that the teacher has never seen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 16, padding_idx=0)
        self.convolution = nn.Conv1d(16, 64, 7, padding=3)
        self.classifier = nn.Linear(64, 3)

    def forward(self, letters: Tensor) -> Tensor:
        states = F.gelu(self.convolution(self.embedding(letters).transpose(1, 2)))
        logits: Tensor = self.classifier(states.amax(-1))
        return logits


class ImageCnn(nn.Module):
    """Three-channel images to logits, without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 16, 4, stride=4)
        self.classifier = nn.Linear(16 * 16, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.convolution(pixel_values).relu().flatten(1))
        return logits


def arguments(folder: Path, epochs: int) -> DistillationArguments:
    return DistillationArguments(
        output_dir=str(folder), alpha=1.0, temperature=2.0, num_train_epochs=epochs,
        per_device_train_batch_size=16, learning_rate=1e-2, report_to=[], save_strategy="no",
        disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip


def test_a_cnn_with_another_tokenizer_learns_from_kept_outputs(tmp_path: Path) -> None:
    generator = random.Random(0)
    texts = [sentence(generator, index % 2 == 1) for index in range(160)]
    teacher = shrinkable_model("bert")
    words = Dataset.from_dict(dict(TOKENIZER(texts)))

    def pad(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        return dict(TOKENIZER.pad(items, return_tensors="pt"))

    cache = TeacherCache.build(teacher, words, pad, folder=tmp_path / "caches")
    taught = cache.lookup(range(160)).logits.argmax(1)
    letters = Dataset.from_dict({"letters": [[ord(letter) for letter in text] for text in texts]})

    def pad_letters(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        rows = [torch.tensor(item["letters"]) for item in items]
        return {"letters": nn.utils.rnn.pad_sequence(rows, batch_first=True)}

    torch.manual_seed(0)
    student = LetterCnn()
    trainer = DistillationTrainer(
        model=student,
        args=arguments(tmp_path, 25),
        teacher=cache,
        train_dataset=cache.attach(letters),
        data_collator=TeacherCache.collator(pad_letters),
    )
    before = agreement(student, pad_letters(list(letters)), taught)
    trainer.train()
    after = agreement(student, pad_letters(list(letters)), taught)
    most = max(float((taught == label).float().mean()) for label in range(3))
    assert after > max(most + 0.1, before + 0.1, 0.85)


def test_a_cnn_learns_images_from_a_vision_transformer(tmp_path: Path) -> None:
    teacher = shrinkable_model("vit")
    pixels = torch.randn(128, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        taught = teacher(pixels).logits.argmax(1)
    torch.manual_seed(0)
    student = ImageCnn()
    trainer = DistillationTrainer(
        model=student,
        args=arguments(tmp_path, 12),
        teacher=teacher,
        train_dataset=[{"pixel_values": image} for image in pixels],
    )
    before = agreement(student, {"pixel_values": pixels}, taught)
    trainer.train()
    after = agreement(student, {"pixel_values": pixels}, taught)
    most = max(float((taught == label).float().mean()) for label in range(3))
    assert after > max(most + 0.1, before + 0.1, 0.85)


@torch.no_grad()
def agreement(student: nn.Module, inputs: dict[str, Tensor], taught: Tensor) -> float:
    """Share of the rows where the student's class is the teacher's."""
    student.eval()
    return float((student(**inputs).argmax(1) == taught).float().mean())


def image_rows(count: int = 16) -> list[dict[str, Tensor]]:
    chance = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 16, 16, generator=chance)
    return [
        {"pixel_values": image, "labels": torch.tensor(number % 3)}
        for number, image in enumerate(images)
    ]


def tiny_swin(depths: list[int], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "num_labels": 3}
    config = SwinConfig(**sizes, depths=depths, num_heads=[1, 2], window_size=2)
    return SwinForImageClassification(config).eval()  # type: ignore[no-untyped-call]


def tiny_vit() -> Any:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_labels": 3}
    config = ViTConfig(
        **sizes, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    return ViTForImageClassification(config).eval()  # type: ignore[no-untyped-call]


def follow(folder: Path, student: Any, teacher: Any, **given: Any) -> list[float]:
    args = arguments(folder, 1)
    for name, value in {"logging_steps": 1, "max_steps": 12, **given}.items():
        setattr(args, name, value)
    trainer = DistillationTrainer(student, args, teacher=teacher, train_dataset=image_rows())
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_a_swin_follows_a_vit_and_a_vit_a_swin(tmp_path: Path) -> None:
    for student, teacher in ((tiny_swin([1, 1]), tiny_vit()), (tiny_vit(), tiny_swin([1, 1]))):
        losses = follow(tmp_path, student, teacher, hidden_weight=1.0)
        assert losses[-1] < 0.9 * losses[0]
        with pytest.raises(ModelError, match="so their attention cannot be compared"):
            follow(tmp_path, student, teacher, attention_weight=1.0)


def test_a_shorter_swin_follows_its_teacher_in_every_term(tmp_path: Path) -> None:
    teacher = tiny_swin([2, 2])
    student = make_student(teacher, layers=2)
    weights = {"hidden_weight": 1.0, "attention_weight": 1.0, "value_weight": 1.0}
    losses = follow(tmp_path, student, teacher, max_steps=30, **weights)
    assert losses[-1] < 0.9 * losses[0]
