"""Every backend: what it quantizes, what it says of it, and that the result stays near the model.

Backends that are not installed are skipped; ONNX Runtime is installed by ``make test``.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from hfcompress import Calibration
from hfcompress.config import Config
from hfcompress.errors import (
    CalibrationError,
    ConfigError,
    MissingExtraError,
    ModelError,
    TargetError,
)
from hfcompress.models.configuration_text import TextConfig
from hfcompress.models.modeling_text import TextForSequenceClassification
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import cover
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.quantize import quantize
from tests.quantization.quantized import quantized
from tests.tiny_models import logits, text_batches, text_model

BACKENDS = ("torch", "torchao", "onnxruntime", "openvino")
pytestmark = pytest.mark.usefixtures("shared_exports")


def make(model: Any = None, **options: Any) -> QuantizedModel:
    """Quantize the small BERT, with calibration data at hand."""
    config = QuantizationConfig(**options)
    pytest.importorskip(config.backend)  # each is called what its package is
    return quantize(model or text_model(), config, Calibration(text_batches()))


def same(first: QuantizedModel, second: QuantizedModel) -> bool:
    """Whether two give the same logits, bit for bit."""
    batch = text_batches()[0]
    return np.array_equal(first.logits(batch), second.logits(batch))


def change(quantized: QuantizedModel, model: Any = None) -> float:
    """The largest difference of a logit from the fp32 model's, by the largest logit."""
    batch = text_batches()[0]
    expected = logits(model or text_model(), batch)
    found: Any = quantized(**batch).logits
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_mode_is_near_the_model_and_covers_its_linears(backend: str) -> None:
    model = text_model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = make(model, backend=backend)
    assert 0 < change(found) < 0.15
    assert all(torch.equal(weights[name], new) for name, new in model.state_dict().items())
    rows = {row.name: row for row in found.coverage.modules}
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert all(rows[name].quantized for name in linears)
    norm = rows["bert.encoder.layer.0.output.LayerNorm"]
    assert (norm.quantized, norm.why) == (
        False,
        "norms and single parameters stay in floating point",
    )
    table = rows["bert.embeddings.word_embeddings"]
    assert table.quantized is (backend in ("onnxruntime", "openvino"))
    assert table.quantized or "only" in table.why
    weight = sum(4 * module.weight.numel() for module in linears.values())
    tables = sum(4 * m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    total = sum(4 * parameter.numel() for parameter in model.parameters())
    integers = weight + (tables if table.quantized else 0)
    assert found.coverage.share_of_bytes == pytest.approx(integers / total)
    assert 0.7 < found.coverage.share_of_macs < 1
    assert found.to_dict()["left_alone"] == found.coverage.reasons


def test_dynamic_int8_of_torch_equals_a_float64_reference() -> None:
    model = text_model()
    found = make(model, backend="torch")
    linear: Any = model.classifier
    x = torch.randn(5, 32)
    engine: Any = found.engine
    got = engine.model.classifier(x)
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    step = (high - low) / 255
    zero = round(-low / step)
    x_integers = ((x.double() / step).round() + zero).clamp(0, 255) - zero
    scale = linear.weight.abs().amax(1).double() / 127
    w_integers = (linear.weight.double() / scale[:, None]).round()
    expected = (x_integers @ w_integers.T) * step * scale + linear.bias.double()
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_onnxruntime_weights_equal_a_float64_reference() -> None:
    onnx = pytest.importorskip("onnx")
    model = text_model()
    engine: Any = quantized().engine
    graph = onnx.load(str(engine.path)).graph
    tensors = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    weight = model.bert.pooler.dense.weight.detach().double().numpy()
    name = "bert.pooler.dense.weight"
    scale = np.abs(weight).max(axis=1) / 127
    np.testing.assert_allclose(tensors[f"{name}_scale"], scale, rtol=1e-6)
    integers = tensors[f"{name}_quantized"].T.astype(np.int64)
    assert np.abs(integers - weight / scale[:, None]).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"backend": "torch"}, {"per_channel": False}),
        ({"backend": "torchao"}, {"mode": "weight-only"}),
        ({"backend": "torchao", "mode": "weight-only"}, {"bits": 4}),
        ({}, {"per_channel": False}),
        ({}, {"embeddings": False}),
        ({}, {"embedding_bits": 4}),
        ({}, {"per_token": True}),
        ({"backend": "openvino"}, {"embedding_bits": 4}),
        ({}, {"reduce_range": True}),
        ({}, {"mode": "none"}),
        ({}, {"mode": "static"}),
        ({"mode": "static"}, {"embeddings": False}),
        ({"mode": "static"}, {"calibrate": "entropy"}),
        ({"mode": "static", "calibrate": "percentile"}, {"percentile": 90.0}),
        ({"backend": "openvino"}, {"embeddings": False}),
        ({"backend": "openvino"}, {"mode": "none"}),
    ],
)
def test_every_option_changes_the_result(options: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = quantized(**options), quantized(**{**options, **other})
    assert not same(first, second)
    assert change(second) < 0.8
    if other.get("mode") == "none":
        assert change(second) < 1e-4
        assert second.coverage.share_of_macs == 0
    if "embeddings" in other:
        assert second.coverage.reasons["embeddings: false"] == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_excluded_modules_stay_in_fp32(backend: str) -> None:
    found = quantized(backend=backend, exclude=("*.query", "classifier"))
    rows = {row.name: row for row in found.coverage.modules}
    for name in ("bert.encoder.layer.0.attention.self.query", "classifier"):
        assert (rows[name].quantized, rows[name].why) == (False, "excluded by the config")
    assert rows["bert.encoder.layer.0.attention.self.key"].quantized
    whole = quantized(backend=backend)
    assert found.bytes > whole.bytes
    assert not same(found, whole)


def test_openvino_in_bf16_where_the_processor_has_it() -> None:
    exact = quantized(backend="openvino", mode="none")
    fast = quantized(backend="openvino", mode="none", floats="auto")
    abilities = torch.cpu.get_capabilities()
    assert same(exact, fast) is not any(abilities.get(f"{kind}_bf16") for kind in ("amx", "avx512"))


@pytest.mark.parametrize("threads", [1, 2])
def test_engines_take_as_many_threads_as_torch(threads: int) -> None:
    """Else one of two in a comparison has more cores than the other."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        session: Any = make(backend="onnxruntime", mode="none").engine
    finally:
        torch.set_num_threads(before)
    assert session._session.get_session_options().intra_op_num_threads == threads


def test_openvino_takes_as_many_threads_as_torch() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compiled: Any = make(backend="openvino", mode="none").engine
    finally:
        torch.set_num_threads(before)
    assert compiled._compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_a_model_without_a_linear() -> None:
    settings: Any = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    model: Any = ResNetForImageClassification(settings)
    model.classifier = torch.nn.Identity()
    with pytest.raises(TargetError, match="ResNetForImageClassification has no Linear to quantize"):
        quantize(model, QuantizationConfig(mode="dynamic"))


def test_a_processor_without_vnni_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    (note,) = make(backend="torch").notes
    assert "no VNNI, AMX or dot-product instructions" in note
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    assert make(backend="torch").notes == ()


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "backend should be 'torch', 'torchao', 'onnxruntime'"),
        ({"backend": "torch", "mode": "static"}, "torch has no mode static; it has: dynamic"),
        ({"bits": 4}, "bits: 4 needs backend: torchao and mode: weight-only"),
        ({"backend": "torch", "embeddings": False}, "embeddings is an option of onnxruntime and"),
        ({"embeddings": False, "embedding_bits": 4}, "embedding_bits: 4 needs embeddings: true"),
        ({"backend": "torch", "embedding_bits": 4}, "embedding_bits is an option of onnxruntime"),
        ({"mode": "static", "per_token": True}, "per_token needs mode: dynamic"),
        ({"calibrate": "entropy"}, "calibrate: entropy needs mode: static"),
        ({"mode": "static", "percentile": 99.0}, "percentile needs calibrate: percentile"),
        ({"mode": "none", "exclude": ("x",)}, "mode: none quantizes nothing"),
        ({"backnd": "torch"}, "did you mean 'backend'"),
    ],
)
def test_a_config_that_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantizationConfig(**options)
    assert issubclass(QuantizationConfig, Config)


@pytest.mark.parametrize(
    ("backend", "module", "extra"),
    [("torchao", "torchao", "torchao"), ("onnxruntime", "onnxruntime", "onnx"),
     ("openvino", "openvino", "openvino")],
)  # fmt: skip
def test_a_backend_that_is_not_installed(
    backend: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'hfcompress\[{extra}\]'"):
        quantize(text_model(), QuantizationConfig.from_dict({"backend": backend}), text_batches())


def test_static_mode_without_calibration_data() -> None:
    config = QuantizationConfig(mode="static")
    with pytest.raises(CalibrationError, match="onnxruntime in mode static needs calibration data"):
        quantize(text_model(), config)
    with pytest.raises(CalibrationError, match="needs calibration data"):
        quantize(text_model(), QuantizationConfig(backend="openvino"), [])


def test_models_that_cannot_be_quantized() -> None:
    config = QuantizationConfig(backend="torch")
    with pytest.raises(TargetError, match="'nothing' matches no module"):
        quantize(text_model(), config.replace(exclude=("nothing",)))
    with pytest.raises(
        ModelError, match=r"has weights of torch\.bfloat16; load it with dtype=torch.float32"
    ):
        quantize(text_model().bfloat16(), config)
    engine: Any = quantize(text_model(), config).engine
    with pytest.raises(TargetError, match="no Linear or convolution to quantize"):
        quantize(engine.model, config)


def test_an_engine_that_refuses_the_graph_leaves_the_fp32_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tools = pytest.importorskip("onnxruntime.quantization")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel for this graph\nand more lines")

    monkeypatch.setattr(tools, "quantize_dynamic", refuse)
    with pytest.raises(
        ModelError, match="no kernel for this graph; the fp32 model is kept"
    ) as error:
        make()
    kept = str(error.value).rpartition(" ")[2]
    runtime = pytest.importorskip("onnxruntime")
    assert runtime.InferenceSession(kept).get_inputs()[0].name == "input_ids"


def test_an_nncf_that_refuses_the_graph_leaves_the_fp32_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    openvino = pytest.importorskip("openvino")
    nncf = pytest.importorskip("nncf")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no statistics for node 7\nand more lines")

    monkeypatch.setattr(nncf, "quantize", refuse)
    message = "OpenVINO cannot quantize BertFor.*: no statistics for node 7; the fp32 model is kept"
    with pytest.raises(ModelError, match=message) as error:
        make(backend="openvino")
    kept = str(error.value).rpartition(" ")[2]
    assert openvino.Core().read_model(kept).inputs[0].any_name == "input_ids"


def test_an_openvino_file_is_terse_and_keeps_the_names_of_modules() -> None:
    pytest.importorskip("openvino")
    engine: Any = quantized(backend="openvino").engine
    text = engine.path.read_text()
    assert not {"<dim>", "nncf", "\n"} & {part for part in ("<dim>", "nncf", "\n") if part in text}
    assert 'name="bert.encoder.layer.0.attention.self.query"' in text
    constants = re.findall(r'type="Const" version="opset1"><data ([^/]*)/>', text)
    assert len(constants) == len(set(constants)) > 30
    assert engine.inputs == ("input_ids", "attention_mask", "token_type_ids")


@pytest.mark.parametrize(
    ("encoder", "kind", "why"),
    [
        ("cnn", "Conv1d", "left alone"),
        ("lstm", "LSTM", "LSTM is none of the modules that are quantized"),
    ],
)
def test_modules_of_other_kinds_are_called_by_their_kind(encoder: str, kind: str, why: str) -> None:
    config = TextConfig(encoder=encoder, vocab_size=60, embedding_size=16, width=8)  # type: ignore[arg-type]
    coverage = cover(TextForSequenceClassification(config), set(), lambda module: "left alone")
    others = {row.kind: row.why for row in coverage.modules if row.kind == kind}
    assert others == {kind: why}
