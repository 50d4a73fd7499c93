"""Transformers teach networks of another kind: other words, other layers, images."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.cache import TeacherCache
from hfcompress.distillation.trainer import DistillationTrainer
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
