"""The ``shrink`` step on a ResNet: channels go, batch norms train on, the model reloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageClassification

from hfcompress.measure.size import count_parameters
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.run import run
from tests.data.test_image_data import write_idx

RESNET: dict[str, Any] = {
    "model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16],
    "depths": [1, 1], "layer_type": "basic",
}  # fmt: skip
FAST = {"max_steps": 2, "batch_size": 4}


def test_a_resnet_loses_channels_recovers_and_reloads(tmp_path: Path) -> None:
    data = write_idx(tmp_path / "digits")
    recipe = {
        "model": {"config": RESNET, "image_size": 16},
        "task": "image-classification",
        "data": {"path": str(data), "eval": "test"},
        "steps": [
            {"finetune": FAST},
            {"shrink": {"macs": 0.5, "rounds": 2, "calibration_rows": 12, "recover": FAST}},
            {"recover": {**FAST, "distillation": {"temperature": 2}}},
        ],
        "save_models": True,
    }
    result = run(parse_recipe(recipe), tmp_path / "run")
    assert not result.failures, result.failures
    (row,) = result.rows
    assert row["steps"][1]["macs"]["shrunk"] <= 0.5 * row["steps"][1]["macs"]["dense"]
    (folder,) = (tmp_path / "run" / "models").iterdir()
    model: Any = AutoModelForImageClassification.from_pretrained(folder)
    assert count_parameters(model) == row["parameters"]
    norm = model.resnet.embedder.embedder.normalization
    assert norm.num_batches_tracked == 6  # finetune, between the rounds, recover
