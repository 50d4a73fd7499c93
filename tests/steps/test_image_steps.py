"""Steps on images: a student of another family, and int8 by the kind of network."""

from __future__ import annotations

import html
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hfcompress
from hfcompress.recipes.schema import parse_recipe
from hfcompress.report.pipeline import BARS_CAPTION
from hfcompress.sweep.run import run

pytestmark = pytest.mark.usefixtures("shared_exports")

RESNET: dict[str, Any] = {
    "model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16],
    "depths": [1, 1], "layer_type": "basic",
}  # fmt: skip
VIT: dict[str, Any] = {
    "model_type": "vit", "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 4,
}  # fmt: skip
FAST: dict[str, Any] = {"max_steps": 4, "batch_size": 16, "learning_rate": 1e-2}
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _caches_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def rows_of(tmp_path: Path) -> Run:
    """Runs steps on IDX files of small images whose bright half is their class."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for side, count in (("train", 48), ("t10k", 24)):
        generator = np.random.default_rng(count)
        labels = np.arange(count, dtype=np.uint8) % 2
        images = generator.integers(0, 90, (count, 16, 16), dtype=np.uint8)
        images[labels == 1, :8] += 120
        head = struct.pack(">IIII", 0x803, count, 16, 16)
        (folder / f"{side}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">II", 0x801, count)
        (folder / f"{side}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())

    def run_steps(
        config: dict[str, Any], *steps: dict[str, Any], output: Path | None = None, **more: Any
    ) -> list[dict[str, Any]]:
        plan = {
            "model": {"config": config, "image_size": 16},
            "task": "image-classification",
            "data": {"path": str(folder), "eval": "test"},
            "steps": [{"finetune": FAST}, *steps],
        }
        result = run(parse_recipe({**plan, **more}), output)
        assert not result.failures, result.failures
        return result.rows

    return run_steps


@pytest.mark.parametrize(("teacher", "student"), [(VIT, RESNET), (RESNET, VIT)])
def test_a_student_of_another_family_follows_maps_from_a_cache_too(
    teacher: dict[str, Any], student: dict[str, Any], rows_of: Run
) -> None:
    step: dict[str, Any] = {**FAST, "model": {"config": student}}
    hidden = {"hidden_weight": 1.0}
    changes: list[dict[str, Any]] = [
        {}, {"distillation": hidden}, {"distillation": hidden, "cache": True},
        {"distillation": {**hidden, "hidden_distance": "attention_transfer"}},
    ]  # fmt: skip
    rows = [rows_of(teacher, {"distill": {**step, **change}})[0] for change in changes]
    losses = [row["steps"][1]["training_loss"] for row in rows]
    assert len({row["weights_hash"] for row in rows}) == 4
    assert losses[1] > losses[0] + 0.5  # the states' distance is added
    # A cache keeps states in half precision.
    assert losses[2] == pytest.approx(losses[1], rel=0.02)


def test_a_pipeline_ends_in_static_int8_and_a_folder_that_reads_image_files(
    rows_of: Run, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    rows = rows_of(
        RESNET,
        {"prune": {"sparsity": 0.5}},
        {"quantize": {"calibration_rows": 32}},
        output=tmp_path / "run",
        save_models=True,
        measure={"every_step": True},
    )
    done = rows[-1]["steps"][-1]
    assert (done["backend"], done["mode"]) == ("onnxruntime", "static")
    assert done["share_of_macs"] == 1.0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"bars.png", "grids.png", "levels.png"} <= names
    page = (tmp_path / "run" / "report.html").read_text()
    for heading in ("Weights at each sparsity", "Weights in fp32 and in int8"):
        assert f"<h2>{heading}</h2>" in page
    assert html.escape(BARS_CAPTION) in page  # at the top, without a heading
    folder = max((tmp_path / "run" / "models").iterdir())
    picture = np.zeros((16, 16), np.uint8)
    picture[:8] = 200
    Image.fromarray(picture).save(tmp_path / "photo.png")
    found: Any = hfcompress.load(folder)(tmp_path / "photo.png")
    assert 0.5 <= found["score"] <= 1
    assert (folder / "example.py").is_file()
