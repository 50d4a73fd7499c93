"""SmoothQuant: the same function in fp32, and less lost in int8 where activations have outliers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hfcompress.errors import CalibrationError, ConfigError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from hfcompress.quantization.smoothquant import largest_inputs, smooth_products
from tests.tiny_models import logits, text_batches, text_model

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("shared_exports")


def with_outliers() -> Any:
    """A norm that makes two channels of its output forty times the others; they are used little."""
    model = text_model()
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.attention.output.LayerNorm.weight[:2] *= 40
        layer.intermediate.dense.weight[:, :2] /= 40
    return model


def arrays() -> list[dict[str, Any]]:
    return [{k: v.numpy() for k, v in batch.items() if k != "labels"} for batch in text_batches()]


def error(model: Any, **options: Any) -> float:
    found = quantize(model, QuantizationConfig.from_dict(options), text_batches())
    return float(
        np.abs(found.logits(text_batches()[0]) - logits(model, text_batches()[0]).numpy()).mean()
    )


def test_outliers_lose_less() -> None:
    model = with_outliers()
    for mode in ("dynamic", "static"):
        assert error(model, mode=mode, smooth=0.5) < 0.7 * error(model, mode=mode)
    assert error(model, smooth=0.5) != error(model, smooth=0.8)


def test_the_largest_inputs_are_those_of_the_batches() -> None:
    model = with_outliers()
    found = largest_inputs(model, arrays())
    assert set(found) == {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    seen: list[Any] = []
    layer = model.bert.encoder.layer[0].intermediate.dense
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for batch in text_batches():
        logits(model, batch)
    hook.remove()
    expected = torch.cat([x.flatten(0, 1) for x in seen]).abs().amax(0)
    np.testing.assert_array_equal(found["bert.encoder.layer.0.intermediate.dense"], expected)
    assert not layer._forward_pre_hooks


def test_in_fp32_nothing_changes_and_products_of_one_input_share_a_division(
    exported: Any,
) -> None:
    model = with_outliers()
    graph_model = onnx.load(str(exported(model)))
    before = len(graph_model.graph.node)
    largest = largest_inputs(model, arrays())
    smooth_products(graph_model.graph, largest, 0.5, {"classifier"})
    # query, key and value; attention's output; two of the feed-forward; the pooler.
    assert len(graph_model.graph.node) == before + 5
    session = runtime.InferenceSession(
        graph_model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = {item.name for item in session.get_inputs()}
    given = {k: v for k, v in arrays()[0].items() if k in names}
    given["token_type_ids"] = np.zeros_like(given["input_ids"])
    (found,) = session.run(None, given)
    np.testing.assert_allclose(found, logits(model, text_batches()[0]).numpy(), atol=1e-4)


def test_bad_input() -> None:
    with pytest.raises(CalibrationError, match="smooth needs calibration data"):
        quantize(text_model(), QuantizationConfig(smooth=0.5))
    with pytest.raises(ConfigError, match="smooth is an option of onnxruntime, not of openvino"):
        QuantizationConfig(backend="openvino", smooth=0.5)
    with pytest.raises(ConfigError, match="smooth should be less than or equal to 1"):
        QuantizationConfig(smooth=1.5)
