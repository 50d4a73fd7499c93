"""ONNX files against torch, and what an interruption leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, ViTForImageClassification

from hfcompress.errors import MissingExtraError, ModelError, OutputError
from hfcompress.models.sublayers import sublayers
from hfcompress.models.surgery import keep_units
from hfcompress.quantization import onnx_export as export
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.onnx_export import (
    TOLERANCE,
    check_against_torch,
    export_onnx,
    input_names,
)
from hfcompress.quantization.quantize import quantize
from tests.tiny_models import text_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def session(path: Path) -> Callable[[Any], Any]:
    opened = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda arrays: opened.run(None, dict(arrays))[0]


def test_uneven_widths_export_too(exported: Callable[[Any], Path]) -> None:
    model = text_model("bert", seed=1)
    for place, sublayer in enumerate(sublayers(model)):
        keep_units(model, sublayer, list(range(3 if place == 0 else 20)))
    path = exported(model)
    assert check_against_torch(model, session(path), "ONNX Runtime") <= TOLERANCE
    shapes = {item.name: list(item.dims) for item in onnx.load(str(path)).graph.initializer}
    assert shapes["bert.encoder.layer.0.attention.self.query.weight"] == [32, 24]
    assert shapes["bert.encoder.layer.0.output.dense.weight"] == [20, 32]


def test_images_have_a_dynamic_batch(exported: Callable[[Any], Path]) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
             "patch_size": 8, "intermediate_size": 16, "num_labels": 3}  # fmt: skip
    settings: Any = AutoConfig.for_model("vit", **sizes)
    model = ViTForImageClassification(settings).train(False)
    assert input_names(model) == ("pixel_values",)
    assert check_against_torch(model, session(exported(model)), "ONNX Runtime") <= TOLERANCE


def test_operations_and_weights_are_called_what_their_module_is(
    exported: Callable[[Any], Path],
) -> None:
    model = text_model("bert")
    graph = onnx.load(str(exported(model))).graph
    nodes = {node.name: node.op_type for node in graph.node}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert nodes[name] == "MatMul", name
        if isinstance(module, torch.nn.Embedding):
            assert nodes[name] == "Gather", name
    weights = {item.name for item in graph.initializer}
    assert {"classifier.weight", "bert.embeddings.word_embeddings.weight"} <= weights
    assert not any(node.metadata_props or node.doc_string for node in graph.node)


def test_a_large_model_has_its_weights_in_a_file_beside_and_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ONE_FILE", 1000)
    model = text_model("bert").train(True)
    before = model.config._attn_implementation
    path = export_onnx(model, tmp_path / "made" / "model.onnx")
    assert model.training
    assert model.config._attn_implementation == before
    files = sorted(file.name for file in path.parent.iterdir())
    assert files == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < path.with_name("model.onnx.data").stat().st_size
    assert check_against_torch(model, session(path), "ONNX Runtime") <= TOLERANCE


def test_an_interrupted_export_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old one")

    class Interrupted:
        model = None

        def save(self, target: str, external_data: bool) -> None:
            Path(target).write_bytes(b"half of")
            raise KeyboardInterrupt

    monkeypatch.setattr(export, "_capture", lambda *given: Interrupted())
    monkeypatch.setattr(export, "tidy", lambda graph, model: None)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(text_model("bert"), path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_outputs_are_refused() -> None:
    model = text_model("bert")
    nan = np.full((1, 3), np.nan, np.float32)
    with pytest.raises(ModelError, match=r"differ from torch's by .*; use backend: torch"):
        check_against_torch(model, lambda arrays: np.ones((1, 3), np.float32), "an engine")
    with pytest.raises(ModelError, match="differ from torch's by nan"):
        check_against_torch(model, lambda arrays: nan, "an engine")


def test_a_model_that_torch_cannot_capture(tmp_path: Path) -> None:
    model = text_model("bert")
    model.classifier.forward = lambda hidden: hidden if hidden.sum() > 0 else -hidden
    with pytest.raises(ModelError, match="torch cannot export BertForSequenceClassification"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(export, "_capture", lambda *given: type("Program", (), {"model": None})())
    monkeypatch.setattr(export, "tidy", lambda graph, model: None)
    with pytest.raises(OutputError, match="cannot be written"):
        export_onnx(text_model("bert"), tmp_path / "file" / "model.onnx")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hfcompress\[onnx\]'"):
        export_onnx(text_model("bert"), tmp_path / "model.onnx")


def test_recurrent_networks_export_without_a_warning(tmp_path: Path) -> None:
    """Two layers, both directions: the exporter warns of its own calls."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.GRU(4, 8, num_layers=2, bidirectional=True, batch_first=True)
            self.last = nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.last(self.read(x)[0][:, -1])
            return out

    torch.manual_seed(0)
    model, batch = Recurrent().eval(), {"x": torch.randn(6, 10, 4)}
    made = quantize(model, QuantizationConfig(mode="none"), [batch])
    with torch.no_grad():
        expected = model(**batch)
    torch.testing.assert_close(torch.from_numpy(made.logits(batch)), expected, atol=1e-5, rtol=1e-4)
