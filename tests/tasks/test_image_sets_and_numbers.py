"""Several labels, or numbers, for an image: read from tables, trained, measured, quantized."""

from __future__ import annotations

import csv
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, f1_score, mean_squared_error, r2_score
from transformers import AutoModelForImageClassification, ViTImageProcessorPil, pipeline

import hfcompress
from hfcompress.cli import main
from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.run import run
from hfcompress.tasks.image_classification import IMAGE_CLASSIFICATION as TASK
from tests.fresh_process import run_fresh
from tests.tiny_images import SIDE, image_model

# datasets leaves the metadata.csv of a folder open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
PROCESSOR = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
LABELS = ["red", "blue"]


def write_images(folder: Path, kind: str, described: bool, count: int = 24) -> Path:
    """Images with a red upper half, a blue lower one, or both; beside them tables that say it."""
    generator = np.random.default_rng(0)
    for split in ("train", "validation"):
        home = folder / split if described else folder
        home.mkdir(parents=True, exist_ok=True)
        table = home / "metadata.csv" if described else folder / f"{split}.csv"
        rows: list[list[object]] = [["file_name" if described else "image"]]
        rows[0] += {"columns": LABELS, "lists": ["label"], "number": ["score"]}[kind]
        for place in range(count):
            red, blue = (int(value) for value in generator.integers(0, 2, 2))
            pixels = generator.integers(0, 60, (SIDE, SIDE, 3)).astype(np.uint8)
            pixels[: SIDE // 2, :, 0] += np.uint8(150 * red)
            pixels[SIDE // 2 :, :, 2] += np.uint8(150 * blue)
            Image.fromarray(pixels).save(home / f"{split}{place}.png")
            names = "|".join(name for name, on in zip(LABELS, (red, blue), strict=True) if on)
            every: dict[str, list[object]] = {
                "columns": [red, blue],
                "lists": [names],
                "number": [red + blue / 2],
            }
            rows.append([f"{split}{place}.png", *every[kind]])
        with table.open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    return folder


FIELDS: dict[str, dict[str, Any]] = {
    "columns": {"label": LABELS}, "lists": {"problem": "sets"}, "number": {},
}  # fmt: skip


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("kind", [*FIELDS])
def test_reads_tables_and_folders(kind: str, described: bool, tmp_path: Path) -> None:
    path = str(write_images(tmp_path, kind, described, 6))
    found = TASK.load(DataConfig(path=path, **FIELDS[kind]), need_train=True)
    gc.collect()
    assert found.train is not None
    assert found.kind == ("regression" if kind == "number" else "multi_label")
    assert found.labels == {"columns": LABELS, "lists": sorted(LABELS), "number": ["score"]}[kind]
    data = TASK.encode(found, found.eval, PROCESSOR, None)
    asked = np.asarray(TASK.references(data), np.float64)
    assert asked.shape == (len(found.eval), len(found.labels))
    pixels = data.collate([data.rows[place] for place in range(len(data))])["pixel_values"]
    red = pixels[:, 0, : SIDE // 2].mean((1, 2)) > 0
    column = found.labels.index("red") if kind != "number" else 0
    assert (asked[:, column] >= 1).tolist() == red.tolist()


def test_unreadable_images_are_named_or_left_out(tmp_path: Path) -> None:
    path = write_images(tmp_path, "number", False, 6)
    (path / "validation2.png").write_bytes(b"no image")
    found = TASK.load(DataConfig(path=str(path)), need_train=False)
    with pytest.raises(DataError, match=r"an image cannot be read; .*validation2\.png"):
        TASK.encode(found, found.eval, PROCESSOR, None)
    kept = TASK.load(DataConfig(path=str(path), skip_unreadable=True), need_train=False)
    assert kept.dropped == {"eval: unreadable image": 1}
    assert any("validation2.png" in note for note in kept.notes)
    assert len(TASK.encode(kept, kept.eval, PROCESSOR, None)) == 5


def test_metrics_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    for _ in range(5):
        outputs = generator.normal(size=(40, 3)).astype(np.float32)
        truth = generator.integers(0, 2, (40, 3)).astype(np.float64)
        own = {name: TASK.metric(name, outputs, truth) for name in TASK.metrics("multi_label")}
        said = outputs > 0
        assert own["mean_average_precision"] == pytest.approx(
            average_precision_score(truth, outputs, average="macro")
        )
        for average in ("micro", "macro"):
            assert own[f"f1_{average}"] == pytest.approx(f1_score(truth, said, average=average))
        numbers = generator.normal(size=(40, 1))
        mixed = (numbers + generator.normal(size=(40, 1))).astype(np.float32)
        own = {name: TASK.metric(name, mixed, numbers) for name in TASK.metrics("regression")}
        flat = numbers[:, 0], mixed[:, 0].astype(np.float64)
        assert own["pearson"] == pytest.approx(pearsonr(*flat)[0])
        assert own["spearman"] == pytest.approx(spearmanr(*flat)[0])
        assert own["rmse"] == pytest.approx(mean_squared_error(*flat) ** 0.5)
        assert own["r2"] == pytest.approx(r2_score(*flat))


STEPS: list[dict[str, Any]] = [
    {"finetune": {"epochs": 3, "learning_rate": 3e-3}},
    {"prune": {"sparsity": 0.3}},
    {"shrink": {"macs": 0.8, "min_heads": 1, "min_neurons": 8, "calibration_rows": 16}},
    {"distill": {"max_steps": 2}},
    {"quantize": {"backend": "torch"}},
]


@pytest.mark.parametrize(("kind", "metric"), [("columns", "f1_micro"), ("number", "pearson")])
def test_every_step_of_a_recipe_and_the_folder(
    kind: str, metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_model("vit").save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    data = write_images(tmp_path / "data", kind, True)
    recipe = parse_recipe(
        {"name": "images", "task": "image-classification", "model": str(tmp_path / "model"),
         "data": {"path": str(data), **FIELDS[kind]}, "steps": STEPS, "save_models": True}
    )  # fmt: skip
    made = run(recipe, tmp_path / "out", draw=False)
    gc.collect()
    assert made.failures == []
    (row,) = made.rows
    assert (row["metric"], row["n"], row["mcnemar_p"]) == (metric, 24, None)
    assert row["low"] <= row["value"] <= row["high"]
    assert row["drop_low"] <= row["drop"] <= row["drop_high"]
    assert [one["name"] for one in row["classes"]] == (LABELS if kind == "columns" else [])
    (folder,) = (found.parent for found in (tmp_path / "out").glob("**/hfcompress.json"))
    assert "pipeline_tag: image-classification" in (folder / "README.md").read_text()
    _answers_alike(folder, sorted(map(str, (data / "validation").glob("*.png")))[:5], capsys)


def _answers_alike(folder: Path, images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The folder, transformers' pipeline around it, the script and the command give one answer."""
    answer: Any = hfcompress.load(folder)
    alone, many = [answer(image, top_k=None) for image in images], answer(images, top_k=None)
    model = AutoModelForImageClassification.from_pretrained(folder)
    ask: Any = pipeline("image-classification", model=model, image_processor=PROCESSOR)
    for own, theirs, one in zip(alone, ask(images, top_k=5), many, strict=True):
        assert [part["label"] for part in own] == [part["label"] for part in theirs]
        scores = [[part["score"] for part in found] for found in (own, theirs, one)]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
        # torch's int8 has one scale for the activations of a batch.
        np.testing.assert_allclose(sorted(scores[0]), sorted(scores[2]), atol=0.1)
    line = f"{alone[0][0]['label']} {alone[0][0]['score']:.4f}  {images[0]}"
    assert main(["predict", str(folder), images[0]]) == 0
    assert capsys.readouterr().out.strip() == line
    assert run_fresh(folder / "example.py", images[0]).split() == line.split()
