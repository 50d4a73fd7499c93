"""Recipes on images: from scratch to row, and each option that changes a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from hfcompress.errors import ConfigError, ModelError
from hfcompress.recipes.schema import parse_recipe
from hfcompress.steps.training import memory_format
from hfcompress.sweep.run import run
from hfcompress.utils import Progress

RESNET: dict[str, Any] = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
    "layer_type": "basic", "num_channels": 1,
}  # fmt: skip
FINETUNE: dict[str, Any] = {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three kinds of pictures, told apart by the corner that is bright."""
    chance = np.random.default_rng(0)
    for kind, corner in (("left", (0, 0)), ("right", (0, 8)), ("below", (8, 4))):
        place = tmp_path / "images" / kind
        place.mkdir(parents=True)
        for index in range(24):
            pixels = chance.integers(0, 90, (16, 16), np.uint8)
            pixels[corner[0] : corner[0] + 8, corner[1] : corner[1] + 8] += 120
            Image.fromarray(pixels).save(place / f"{index}.png")
    return tmp_path / "images"


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def one(folder: Path) -> Run:
    def run_one(*steps: dict[str, Any], output: Path | None = None, **more: Any) -> dict[str, Any]:
        data = {
            "model": {"config": RESNET, "image_size": 32},
            "task": "image-classification",
            "data": {"path": str(folder), "eval_fraction": 0.5},
            "steps": list(steps),
        }
        result = run(parse_recipe({**data, **more}), output)
        assert not result.failures, result.failures
        row: dict[str, Any] = result.rows[0]
        return row

    return run_one


def test_from_scratch_to_a_row_and_back(one: Run, tmp_path: Path) -> None:
    row = one(
        {"finetune": {**FINETUNE, "epochs": 15, "channels_last": True}},
        {"prune": {"sparsity": 0.5}},
        {"recover": {**FINETUNE, "channels_last": True, "distillation": {"temperature": 2}}},
        output=tmp_path / "run",
        save_models=True,
    )
    assert row["value"] > 0.6
    assert row["actual_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert [part["name"] for part in row["classes"]] == ["below", "left", "right"]
    right = sum(part["value"] * part["n"] for part in row["classes"])
    assert right == pytest.approx(row["value"] * row["n"])
    (kept,) = (tmp_path / "run" / "models").iterdir()
    model = AutoModelForImageClassification.from_pretrained(kept)
    assert sum(int((p == 0).sum()) for p in model.parameters() if p.dim() == 4) > 1000
    assert "Class by class" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "run" / "classes.png").is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"image_augmentation": {"flip": 1.0}},
        {"image_augmentation": {"shift": 2}},
        {"image_augmentation": {"erase": 1.0}},
        {"schedule": "cosine"},
        {"weight_decay": 0.5},
    ],
)
def test_each_option_changes_the_training(change: dict[str, Any], one: Run) -> None:
    plain, changed = one({"finetune": FINETUNE}), one({"finetune": {**FINETUNE, **change}})
    assert plain["weights_hash"] != changed["weights_hash"]


def test_augmentation_leaves_what_is_measured_alone(one: Run) -> None:
    """A training that changes nothing gives the same row, augmented or not."""
    still = {**FINETUNE, "learning_rate": 1e-12, "max_steps": 1}
    plain = one({"finetune": still})
    augmented = one({"finetune": {**still, "image_augmentation": {"erase": 1.0, "shift": 4}}})
    assert plain["value"] == augmented["value"]


def test_the_trial_seed_draws_the_model(one: Run) -> None:
    rows = [one({"finetune": {**FINETUNE, "max_steps": 1}}, seed=seed) for seed in (0, 0, 1)]
    assert rows[0]["weights_hash"] == rows[1]["weights_hash"] != rows[2]["weights_hash"]


def test_channels_last_is_undone() -> None:
    layer = torch.nn.Conv2d(4, 8, 3)
    before = layer.weight.detach().clone()
    with memory_format(layer, True):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous()
    assert torch.equal(layer.weight, before)
    with memory_format(layer, False):
        assert layer.weight.is_contiguous()


def test_no_decay_for_vectors(one: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Trainer

    groups: list[Any] = []
    create = Trainer.create_optimizer

    def noted(self: Any, *args: Any) -> Any:
        optimizer = create(self, *args)
        groups.extend(optimizer.param_groups)
        return optimizer

    monkeypatch.setattr(Trainer, "create_optimizer", noted)
    one({"finetune": {**FINETUNE, "weight_decay": 0.1, "max_steps": 1}})
    for group in groups:
        sizes = {parameter.dim() > 1 for parameter in group["params"]}
        assert sizes <= {group["weight_decay"] > 0}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


@pytest.mark.parametrize("cache", [False, True])
def test_a_student_of_another_architecture(cache: bool, one: Run) -> None:
    vit = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "patch_size": 8,
           "num_attention_heads": 2, "intermediate_size": 16}  # fmt: skip
    row = one(
        {"finetune": FINETUNE},
        {"distill": {**FINETUNE, "cache": cache, "model": {"config": vit}}},
    )
    assert row["steps"][1]["teacher_parameters"] != row["parameters"]
    assert row["parameters"] < 8000


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        ([], ModelError, "'a new resnet' has no trained classification head"),
        (
            [{"finetune": {**FINETUNE, "max_steps": 1}},
             {"distill": {"cache": True, "image_augmentation": {"flip": 0.5}}}],
            ConfigError,
            "leave image_augmentation out, or set cache to false",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together(
    steps: list[dict[str, Any]], error: type[Exception], message: str, one: Run
) -> None:
    with pytest.raises(error, match=message):
        one(*steps)


def test_a_student_of_other_images_is_refused(folder: Path) -> None:
    student = {"model": {"config": RESNET, "image_size": 16}}
    data = {
        "model": {"config": RESNET, "image_size": 32},
        "task": "image-classification",
        "data": str(folder),
        "steps": [{"finetune": {**FINETUNE, "max_steps": 1}}, {"distill": student}],
    }
    result = run(parse_recipe(data), None, Progress())
    assert "reads images with size" in result.failures[0][1]


def test_images_only(model_folder: Path, write_data: Callable[..., Path]) -> None:
    for option in ({"channels_last": True}, {"image_augmentation": {"flip": 0.5}}):
        data = {"model": str(model_folder), "data": str(write_data()),
                "steps": [{"finetune": option}]}  # fmt: skip
        with pytest.raises(ConfigError, match="are for models that read images"):
            run(parse_recipe(data), None)
