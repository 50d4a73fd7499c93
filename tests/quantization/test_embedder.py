"""``load(folder).encode``: the same vectors in every engine, prompts, storage, copies."""

from __future__ import annotations

import json
import pickle
import runpy
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hfcompress
from hfcompress.checkpoint.save import save_compressed
from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.models.sublayers import sublayers
from hfcompress.models.surgery import keep_units
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.embedder import Embedder
from hfcompress.quantization.quantize import quantize
from tests.tiny_embeddings import TEXTS, embedding_folder, tiny_embedder
from tests.tiny_models import text_batches
from tests.tiny_tokenizers import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("shared_exports")
ENGINES: dict[str, tuple[str, dict[str, object]]] = {
    "torch": ("", {}),
    "onnxruntime": ("onnx/model.onnx", {"block_size": 16}),
    "openvino": ("openvino/openvino_model.xml", {}),
}
"""Path of the graph, and options of the quantization."""


def expected(model: Any) -> Any:
    batch = tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits.numpy()


def embedder(folder: Path) -> Embedder:
    return cast(Embedder, hfcompress.load(folder))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return embedder(embedding_folder(tmp_path_factory.mktemp("embedder")))


@pytest.mark.parametrize("backend", ENGINES)
def test_every_engine_gives_the_vectors_of_the_model(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    graph, options = ENGINES[backend]
    model = tiny_embedder(pooling=("mean", "cls"), dense=8, initializer_range=0.1)
    config = QuantizationConfig.from_dict({"backend": backend, **options})
    folder = quantize(model, config, text_batches(vocabulary=25)).save(
        tmp_path / "folder", tiny_tokenizer()
    )
    assert (folder / graph).exists()
    assert (folder / "1_Pooling" / "config.json").is_file()
    assert (folder / "2_Dense" / "model.safetensors").is_file()
    assert "id2label" not in json.loads((folder / "config.json").read_text())
    loaded = embedder(folder)
    found = loaded.encode(TEXTS)
    assert found.shape == (5, 8)
    assert (found * expected(model)).sum(1).min() > 0.98  # cosines
    assert float(loaded.encode(TEXTS[1]) @ found[1]) > 0.98
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(loaded)).encode(TEXTS), found)


@pytest.fixture(scope="module")
def fp32_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("graph") / "folder"
    return quantize(tiny_embedder(), QuantizationConfig(mode="none")).save(folder, tiny_tokenizer())


def test_fp32_graph_gives_what_torch_gives(fp32_graph: Path) -> None:
    found = embedder(fp32_graph).encode(TEXTS)
    np.testing.assert_allclose(found, expected(tiny_embedder()), atol=1e-5)


def test_the_graph_has_the_outputs_that_sentence_transformers_reads(fp32_graph: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(fp32_graph / "onnx" / "model.onnx")
    names = [item.name for item in session.get_outputs()]
    assert names == ["sentence_embedding", "last_hidden_state"]
    batch = dict(tiny_tokenizer()(TEXTS, padding=True, return_tensors="np"))
    batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
    given = {item.name: batch[item.name].astype(np.int64) for item in session.get_inputs()}
    vectors, states = session.run(None, given)
    mask = torch.from_numpy(batch["attention_mask"])
    pooled = tiny_embedder().embed(torch.from_numpy(states), mask)
    np.testing.assert_allclose(pooled.numpy(), vectors, atol=1e-5)


def test_example_script_prints_cosines(
    fp32_graph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["example.py", *TEXTS[:3]])
    runpy.run_path(str(fp32_graph / "example.py"), run_name="__main__")
    printed = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    cosines = embedder(fp32_graph).similarity(TEXTS[:1], TEXTS[1:3])
    np.testing.assert_allclose(printed, cosines[0], atol=1e-3)


def test_shrunk_folder_loads_and_matches_sentence_transformers(tmp_path: Path) -> None:
    model = tiny_embedder()
    part = next(part for part in sublayers(model) if part.kind == "neurons")
    keep_units(model, part, list(range(10)))
    save_compressed(model, tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    np.testing.assert_allclose(embedder(tmp_path).encode(TEXTS), expected(model), atol=1e-6)
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, expected(model), atol=1e-5)


def test_vectors_do_not_depend_on_the_batch(plain: Embedder) -> None:
    whole = plain.encode(TEXTS)
    np.testing.assert_allclose(plain.encode(TEXTS, 1), whole, atol=1e-6)
    np.testing.assert_allclose(plain.encode(tuple(reversed(TEXTS)))[::-1], whole, atol=1e-6)


def test_stored_vectors(plain: Embedder) -> None:
    whole = plain.encode(TEXTS)
    cut = plain.encode(TEXTS, dimensions=6)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(cut / cut[:, :1], whole[:, :6] / whole[:, :1], rtol=1e-3)
    small = plain.encode(TEXTS, precision="int8")
    assert small.dtype == np.int8
    assert np.abs(small).max() == 127
    bits = plain.encode(TEXTS, precision="binary")
    np.testing.assert_array_equal(np.unpackbits(np.asarray(bits, np.uint8), axis=1), whole > 0)


def test_prompts_go_before_the_text(tmp_path: Path) -> None:
    folder = embedding_folder(tmp_path)
    plain = embedder(folder).encode(["good film", "a good film"])
    prompts = {"prompts": {"query": "a ", "none": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    loaded = embedder(folder)
    np.testing.assert_array_equal(loaded.encode("good film"), plain[0])
    np.testing.assert_allclose(loaded.encode("good film", prompt_name="query"), plain[1], atol=1e-6)
    np.testing.assert_allclose(loaded.encode("good film", prompt="a "), plain[1], atol=1e-6)
    with pytest.raises(ConfigError, match="no prompt 'querry'"):
        loaded.encode("film", prompt_name="querry")
    prompts["default_prompt_name"] = "query"  # type: ignore[assignment]
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    np.testing.assert_allclose(embedder(folder).encode("good film"), plain[1], atol=1e-6)


def test_refuses_what_is_not_a_text(plain: Embedder) -> None:
    with pytest.raises(ModelError, match="a vector for each text, not labels"):
        plain("good film")
    with pytest.raises(DataError, match="a pair is not a text"):
        plain.encode([("good", "film")])
    with pytest.raises(DataError, match="nothing to encode"):
        plain.encode([])
    with pytest.raises(ConfigError, match="vectors have 32 values"):
        plain.encode("film", dimensions=64)
    with pytest.raises(ConfigError, match="precision"):
        plain.encode("film", precision=cast(Any, "int4"))


def test_refuses_a_damaged_folder(tmp_path: Path) -> None:
    folder = embedding_folder(tmp_path)
    weights = load_file(folder / "model.safetensors")
    assert any(name.startswith("encoder.layer.0") for name in weights)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        embedder(folder)
