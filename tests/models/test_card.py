"""Every kind of saved folder has a model card that the hub reads, and whose code loads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModelForSequenceClassification

from hfcompress import (
    PruningConfig,
    QuantizationConfig,
    ShrinkConfig,
    StaticStudentConfig,
    make_static_student,
    prune,
    quantize,
    save_compressed,
    save_module,
    shrink,
)
from hfcompress.models.card import Origin, origin_of
from hfcompress.recipes.schema import load_recipe
from hfcompress.report.card import CardSource, model_card
from hfcompress.sweep.run import run
from tests.hub_server import folder_files, serving
from tests.plain_networks import NETWORKS
from tests.tiny_embeddings import tiny_embedder
from tests.tiny_models import (
    shrinkable_batches,
    shrinkable_model,
    tiny_bert,
    token_bert,
)
from tests.tiny_tokenizers import tiny_tokenizer

BASE_CARD = b"---\nlicense: mit\n---\n"
ENGINES = ("torch", "torchao", "onnxruntime", "openvino", "executorch", "litert", "coreml")


def read(folder: Path) -> tuple[Any, str]:
    """The metadata of a folder's card as the hub's client reads it, and its code."""
    card: Any = ModelCard.load(folder / "README.md")
    assert type(card.data) is ModelCardData
    assert "hfcompress" in (card.data.tags or ())
    assert card.data.library_name in {"hfcompress", "transformers", "sentence-transformers"}
    for heading in ("## How to load it", "## How it was made", "## Limits"):
        assert heading in card.text
    return card.data, card.text.split("```python\n")[1].split("```")[0]


def execute(code: str, folder: Path, **names: object) -> Any:
    """The model that a card's code loads."""
    exec(compile(code.replace("FOLDER", str(folder)), "card", "exec"), names)
    return names["model"]


@pytest.mark.parametrize("kind", ["pruned", "shrunk", "packed"])
def test_torch_models(kind: str, tmp_path: Path) -> None:
    model = shrinkable_model("bert")
    if kind == "shrunk":
        shrink(model, ShrinkConfig(macs=0.6), shrinkable_batches("bert"))
    else:
        prune(model, PruningConfig(sparsity=0.6))
    save_compressed(model, tmp_path, sparse=kind == "packed")
    data, code = read(tmp_path)
    assert data.pipeline_tag == "text-classification"
    assert ("pruned" in data.tags) is (kind != "shrunk")
    assert ("import hfcompress" in code) is (kind != "pruned")
    assert type(execute(code, tmp_path)) is type(model)


def test_embedding_models_and_static_students(tmp_path: Path) -> None:
    model, tokenizer = tiny_embedder(), tiny_tokenizer()
    save_compressed(model, tmp_path / "torch")
    data, code = read(tmp_path / "torch")
    assert data.pipeline_tag == "sentence-similarity"
    assert execute(code, tmp_path / "torch").vector_size == model.vector_size
    model.config.name_or_path = str(tmp_path / "torch")
    (tmp_path / "torch" / "README.md").write_bytes(b"---\nbase_model: [org/x]\nlicense: mit\n---\n")
    make_static_student(model, tokenizer, StaticStudentConfig(dimensions=8)).save_pretrained(
        tmp_path / "static", tokenizer
    )
    data, code = read(tmp_path / "static")
    assert data.library_name == "sentence-transformers"
    assert (data.base_model, data.license) == ("org/x", "mit")
    compile(code, "card", "exec")


def test_modules(tmp_path: Path) -> None:
    model = NETWORKS["mlp"].model()
    save_module(model, tmp_path / "module")
    code = read(tmp_path / "module")[1]
    name = type(model).__name__
    assert type(execute(code, tmp_path / "module", **{name: type(model)})) is type(model)


@pytest.mark.parametrize("backend", ENGINES)
def test_quantized_models(backend: Any, tmp_path: Path) -> None:
    """Cards of other engines than torch are written without them: they may not be installed."""
    made = quantize(tiny_bert(), QuantizationConfig(backend="torch"))
    replace(made, config=QuantizationConfig(backend=backend)).save(tmp_path, tiny_tokenizer())
    data, code = read(tmp_path)
    assert data.tags == ["hfcompress", "quantized", backend]
    assert f"backend: {backend}" in (tmp_path / "README.md").read_text()
    compile(code, "card", "exec")
    if backend == "torch":
        assert np.isfinite(execute(code, tmp_path).scores(["good film"])).all()


def test_a_quantized_embedding_model(tmp_path: Path) -> None:
    made = quantize(tiny_embedder(), QuantizationConfig(backend="torch"))
    made.save(tmp_path / "int8", tiny_tokenizer())
    data, code = read(tmp_path / "int8")
    assert data.pipeline_tag == "sentence-similarity"
    assert execute(code, tmp_path / "int8").encode(["good film"]).shape[0] == 1


@pytest.mark.parametrize(
    ("steps", "sparse", "tags"),
    [
        ([{"prune": {"sparsity": 0.5}}], False, ["pruned"]),
        ([{"prune": {"sparsity": 0.5}}], True, ["pruned"]),
        ([{"shrink": {"macs": 0.7}}], False, []),
        ([{"quantize": {"backend": "torch", "mode": "dynamic"}}], False, ["quantized", "torch"]),
    ],
)
def test_models_of_a_run_say_where_they_come_from_and_what_they_reach(
    steps: list[Any], sparse: bool, tags: list[str], tmp_path: Path, model_folder: Path,
    write_data: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with serving(monkeypatch, tmp_path / "hf") as hub:
        hub.add("model", "org/base", {**folder_files(model_folder), "README.md": BASE_CARD})
        rows = {"train.tsv": write_data(rows=40).read_bytes()}
        hub.add("dataset", "org/films", {**rows, "validation.tsv": rows["train.tsv"]})
        path = tmp_path / "recipe.yaml"
        path.write_text("model: org/base\ndata: org/films\nsave_models: true\n")
        recipe = load_recipe(path).replace(steps=steps, save_sparse=sparse)
        run(recipe, tmp_path / "run", draw=False)
        (folder,) = (tmp_path / "run" / "models").glob("*-*")
        data, code = read(folder)
        assert (data.base_model, data.license, data.datasets) == ("org/base", "mit", ["org/films"])
        assert data.tags == ["hfcompress", *tags]
        (result,) = data.eval_results
        assert (result.metric_type, result.dataset_type) == ("accuracy", "org/films")
        assert "95 % interval" in str(result.metric_name)
        assert "## Size" in (folder / "README.md").read_text()
        assert execute(code, folder)(["good film"])


def test_a_folder_on_disk_is_loaded_with_its_task(tmp_path: Path) -> None:
    token_bert().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    row = {"metric": "f1", "value": 0.5, "steps": []}
    text = model_card(row, name="n", source=CardSource(task="token-classification"))
    code = text.split("```python\n")[1].split("```")[0]
    assert execute(code, tmp_path).task == "token-classification"


def test_the_origin_is_what_the_hubs_cache_or_the_folder_says(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert origin_of(tiny_bert()) == Origin()
    with serving(monkeypatch, tmp_path / "hf") as hub:
        hub.add("model", "org/base", folder_files(model_folder))
        model = AutoModelForSequenceClassification.from_pretrained("org/base")
        assert origin_of(model) == Origin("org/base", None)
        model.config.name_or_path = "org/deleted"
        assert origin_of(model) == Origin()
