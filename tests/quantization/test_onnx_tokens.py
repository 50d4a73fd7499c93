"""A scale for each token: the same function in fp32, and int8 that no other row disturbs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hfcompress.quantization.backends.onnx_graph import scale_tokens
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from tests.quantization.test_smoothquant import arrays
from tests.tiny_models import logits, text_batches, text_model

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("shared_exports")


def test_in_fp32_nothing_changes(exported: Any) -> None:
    model = text_model()
    graph_model = onnx.load(str(exported(model)))
    before = len(graph_model.graph.node)
    scale_tokens(graph_model.graph, {"classifier"})
    # Five inputs with four operations each, and seven products with one.
    assert len(graph_model.graph.node) == before + 5 * 4 + 7
    session = runtime.InferenceSession(
        graph_model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = {**arrays()[0], "token_type_ids": np.zeros_like(arrays()[0]["input_ids"])}
    names = {item.name for item in session.get_inputs()}
    (found,) = session.run(None, {name: given[name] for name in names})
    np.testing.assert_allclose(found, logits(model, text_batches()[0]).numpy(), atol=1e-4)


def uneven() -> Any:
    """Some tokens have one huge activation, which the next product does not use."""
    model = text_model()
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.weight[0] *= 160
        layer.output.dense.weight[:, 0] = 0
    return model


def test_what_a_row_gives_hardly_depends_on_its_batch() -> None:
    model, batch = uneven(), text_batches()[0]
    alone = {name: value[:1] for name, value in batch.items()}
    moved, errors = [], []
    for per_token in (False, True):
        found = quantize(model, QuantizationConfig(per_token=per_token))
        together = found.logits(batch)
        moved.append(float(np.abs(together[:1] - found.logits(alone)).max()))
        errors.append(float(np.abs(together - logits(model, batch).numpy()).mean()))
    assert moved[1] < moved[0] / 2
    assert errors[1] < 0.7 * errors[0]
