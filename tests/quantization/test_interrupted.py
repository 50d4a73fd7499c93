"""What an interruption leaves, and what an engine says that refuses: nothing half, one line."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

import hfcompress
from hfcompress.errors import ModelError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from tests.fresh_process import run_together
from tests.tiny_models import text_batches, text_model

ROOT = Path(__file__).parents[2]
_KILLED = """
import os, signal, sys
from hfcompress import QuantizationConfig, quantize
from hfcompress.quantization.backends.torch import TorchEngine
from tests.tiny_models import tiny_bert

def die(self, folder):
    (folder / "model.safetensors").write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)

TorchEngine.write = die
quantize(tiny_bert(), QuantizationConfig(backend="torch")).save(sys.argv[1])
"""


def torch_model() -> Any:
    return quantize(text_model(), QuantizationConfig(backend="torch"))


def test_a_save_that_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = torch_model()

    def stopped(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(made.engine, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        made.save(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_a_killed_save_leaves_no_half_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (done,) = run_together(_KILLED, str(target), environments=[{}])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()
    with pytest.raises(ModelError, match="is not a folder of a quantized model"):
        hfcompress.load(target)
    torch_model().save(target)
    assert (
        hfcompress.load(target).logits({"input_ids": text_batches()[0]["input_ids"].numpy()}).any()
    )


@pytest.mark.parametrize("place", ["export_onnx", "check_against_torch"])
def test_an_interrupted_export_leaves_no_temporary_folder(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)

    def stopped(model: Any, path: Any, *_: object) -> None:
        if isinstance(path, Path):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    backend = "hfcompress.quantization.backends.onnxruntime"
    monkeypatch.setattr(f"{backend}.{place}", stopped)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        quantize(text_model())
    assert not list(tmp_path.glob("*/*"))


def test_openvino_refuses_in_one_line_and_the_fp32_file_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared_exports: None
) -> None:
    nncf = pytest.importorskip("nncf")
    pytest.importorskip("openvino")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no way through this graph\nand more lines")

    monkeypatch.setattr(nncf, "quantize", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        quantize(text_model(), QuantizationConfig(backend="openvino"), text_batches())
    message = str(caught.value)
    assert "OpenVINO cannot quantize" in message
    assert "no way through this graph; the fp32 model is kept as " in message
    assert "\n" not in message
    kept = Path(message.rpartition(" ")[2])
    assert list(tmp_path.glob("*/*")) == [kept]
    from hfcompress.quantization.backends.openvino import OpenVinoEngine

    assert OpenVinoEngine(kept).inputs[0] == "input_ids"


def test_openvino_refuses_a_file_with_other_inputs(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    from hfcompress.quantization.backends.openvino import OpenVinoEngine

    helper = onnx.helper
    given = helper.make_tensor_value_info("speech", onnx.TensorProto.FLOAT, ["batch", 3])
    taken = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])
    node = helper.make_node("Relu", ["speech"], ["logits"])
    graph = helper.make_graph([node], "other", [given], [taken])
    path = tmp_path / "model.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    with pytest.raises(ModelError, match=r"model.onnx reads speech; a classifier reads input_ids"):
        OpenVinoEngine(path)
    path.write_bytes(b"no graph")
    with pytest.raises(ModelError, match="OpenVINO cannot load"):
        OpenVinoEngine(path)
