"""The shipped recipes run by the names that they hold, against a server with tiny models."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from hfcompress.errors import SourceError
from hfcompress.recipes.library import find_recipe, shipped_recipes
from hfcompress.recipes.schema import Recipe, load_recipe
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import prepare
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import run
from hfcompress.utils import Progress
from tests.hub_server import HubServer, folder_files, serving
from tests.tiny_images import image_model
from tests.tiny_models import text_model
from tests.tiny_tokenizers import sentence, tiny_tokenizer

GLUE_CARD = b"""---
configs:
- config_name: sst2
  data_files:
  - {split: train, path: sst2/train-*}
  - {split: validation, path: sst2/validation-*}
---
"""
MODELS = {  # full name on the hub -> tiny family, neurons
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": ("distilbert", 256),
    "distilbert/distilbert-base-uncased": ("distilbert", 256),
    "textattack/bert-base-uncased-SST-2": ("bert", 64),
}


def _parquet(rows: Dataset) -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    return buffer.getvalue()


def _sentences(count: int, seed: int) -> bytes:
    generator = random.Random(seed)
    labels = [number % 2 for number in range(count)]
    texts = [sentence(generator, label == 1) for label in labels]
    kinds = Features(
        {"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])}
    )
    return _parquet(Dataset.from_dict({"sentence": texts, "label": labels}, features=kinds))


def _images(count: int) -> bytes:
    from PIL.Image import new

    kinds = Features({"image": Image(), "label": ClassLabel(names=[f"kind {n}" for n in range(7)])})
    pictures = [new("RGB", (32, 32), (30 * (number % 7), 90, 20)) for number in range(count)]
    labels = [number % 7 for number in range(count)]
    return _parquet(Dataset.from_dict({"image": pictures, "label": labels}, features=kinds))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with serving(monkeypatch, tmp_path / "hf") as server:
        for name, (family, neurons) in MODELS.items():
            model = text_model(family, labels=2, layers=2, neurons=neurons)
            model.config.id2label = {0: "NEGATIVE", 1: "POSITIVE"}
            model.config.label2id = {"NEGATIVE": 0, "POSITIVE": 1}
            folder = tmp_path / family
            model.save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
            server.add("model", name, folder_files(folder))
        server.add("dataset", "nyu-mll/glue", {
            "README.md": GLUE_CARD,
            "sst2/train-00000-of-00001.parquet": _sentences(3000, 0),
            "sst2/validation-00000-of-00001.parquet": _sentences(872, 1),
        })  # fmt: skip
        yield server


def test_the_table_by_name_in_full(hub: HubServer, tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("distilbert-sst2-table"))
    rows = run(recipe, tmp_path / "run", cache=StepCache(tmp_path / "steps"), draw=False).rows
    assert [row["requested_sparsity"] for row in rows] == [0, 0.3, 0.5, 0.6, 0.8]
    assert {row["n"] for row in rows} == {872}
    assert RunDirectory(tmp_path / "run").rows() == rows


NAMES = sorted(
    name for name, path in shipped_recipes().items()
    if (recipe := load_recipe(path)).data.path == "nyu-mll/glue" and recipe.data.name == "sst2"
    and recipe.model.path is not None and not recipe.model.path.startswith("pkg://")
)  # fmt: skip


def _prepare(recipe: Recipe, tmp_path: Path) -> int:
    return len(prepare(recipe, Progress(), StepCache(tmp_path / "steps")).trials)


def test_every_recipe_on_glue_finds_what_it_names(hub: HubServer, tmp_path: Path) -> None:
    assert len(NAMES) > 12
    for name in NAMES:
        assert _prepare(load_recipe(shipped_recipes()[name]), tmp_path) >= 1, name


def test_the_recipe_of_medical_images_finds_what_it_names(hub: HubServer, tmp_path: Path) -> None:
    from transformers import ViTImageProcessorPil

    image_model("resnet", labels=5).save_pretrained(tmp_path / "resnet")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "resnet")
    hub.add("model", "microsoft/resnet-18", folder_files(tmp_path / "resnet"))
    sizes = {"train": 280, "validation": 14, "test": 14}
    images = {f"data/{side}-0.parquet": _images(count) for side, count in sizes.items()}
    hub.add("dataset", "danjacobellis/dermamnist_224", images)
    recipe = load_recipe(shipped_recipes()["medical-images"])
    assert _prepare(recipe, tmp_path) == 5


def test_the_recipe_of_imagenet_says_that_its_data_are_gated(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.add("model", "google/vit-base-patch16-224", {"config.json": b"{}"})
    hub.add("dataset", "ILSVRC/imagenet-1k", {}, "gated")
    with pytest.raises(SourceError, match=r"gated; accept its conditions at .*/ILSVRC/imagenet-1k"):
        _prepare(load_recipe(shipped_recipes()["vit-imagenet"]), tmp_path)
