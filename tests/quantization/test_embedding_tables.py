"""Tables as integers: the numbers by their definition, and both engines by the numbers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hfcompress.errors import ModelError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.embedding_tables import (
    GROUP,
    Floats,
    QuantizedTable,
    halved,
    quantize_table,
)
from hfcompress.quantization.quantize import quantize
from tests.quantization.quantized import quantized
from tests.tiny_models import logits, text_batches, text_model

TABLES = tuple(f"bert.embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type"))


def steps_of(table: QuantizedTable) -> Any:
    return np.repeat(np.abs(table.scales.astype(np.float64)), table.group, axis=1)


@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 99), st.sampled_from([1e-7, 1.0, 1e4]))
@settings(deadline=None, max_examples=80)
def test_eight_bits_come_back_within_half_a_step(
    rows: int, columns: int, seed: int, size: float
) -> None:
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32) * size
    table = quantize_table(weight, 8)
    assert table.scales.shape == (rows, 1)
    back = table.values.astype(np.float64) * table.scales.astype(np.float64)
    # A scale is rounded to fp16, 2^-11 of up to 127 steps.
    assert (np.abs(back - weight) <= steps_of(table) * (0.5 + 127 * 2**-11)).all()
    np.testing.assert_allclose(table.dequantized(), back, rtol=1e-6)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_four_bits_are_no_worse_than_plain_rounding(rows: int, groups: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(rows, groups * GROUP)).astype(np.float32)
    table = quantize_table(weight, 4)
    assert table.scales.shape == (rows, groups)
    assert (table.values.min(), table.values.max()) >= (-8, -8)
    assert table.values.max() <= 7
    parts = weight.reshape(rows, groups, GROUP).astype(np.float64)
    step = np.abs(parts).max(2, keepdims=True) / 7
    plain = np.square(np.rint(parts / step) * step - parts).sum(2)
    ours = np.square(table.dequantized().reshape(parts.shape) - parts).sum(2)
    assert (ours <= plain * 1.01 + 1e-9).all()  # a scale is rounded to fp16


def test_four_bits_are_better_than_plain_rounding() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 4 * GROUP)).astype(np.float32)
    ours = np.square(quantize_table(weight, 4).dequantized() - weight).sum()
    parts = weight.reshape(64, 4, GROUP).astype(np.float64)
    step = np.abs(parts).max(2, keepdims=True) / 7
    plain = np.square(np.rint(parts / step) * step - parts).sum()
    assert ours < 0.95 * plain


def test_numbers_by_hand() -> None:
    table = quantize_table(np.array([[0.5, -1.27, 0.0, 1.0]], np.float32), 8)
    assert table.values.tolist() == [[50, -127, 0, 100]]
    assert table.packed().tolist() == [50, 129, 0, 100]
    four = QuantizedTable(np.array([[1, -8, 7, 0]], np.int8), np.ones((1, 1), np.float16), 4)
    assert four.packed().tolist() == [0x81, 0x07]
    assert four.packed(shift=8).tolist() == [0x09, 0x8F]


def test_zeros_stay_zero_and_odd_rows_take_eight_bits() -> None:
    for bits in (4, 8):
        assert not quantize_table(np.zeros((2, GROUP), np.float32), bits).dequantized().any()
    assert quantize_table(np.ones((2, 5), np.float32), 4).bits == 8
    assert quantize_table(np.ones((2, 6), np.float32), 4).scales.shape == (2, 1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e7])
def test_numbers_that_no_scale_fits(wrong: float) -> None:
    weight: Floats = np.array([[1.0, wrong]], np.float32)
    with pytest.raises(ModelError, match="contains NaN or numbers above 400,000"):
        quantize_table(weight, 8)


def test_constants_are_halved_where_that_changes_nothing_that_counts() -> None:
    kept = halved(np.array([1.0, -0.1, 3e-7, 0.0], np.float32))
    assert kept is not None
    np.testing.assert_allclose(kept, [1, -0.1, 3e-7, 0], rtol=1e-3, atol=1e-6)
    assert halved(np.array([1e-6, 1e-3], np.float32)) is None  # a scale would be 3 % off
    assert halved(np.array([1e5, 1.0], np.float32)) is None
    assert halved(np.array([np.nan], np.float32)) is None


@pytest.mark.usefixtures("shared_exports")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_engine_looks_up_the_numbers_of_the_table(backend: Any, bits: Any) -> None:
    pytest.importorskip(backend)
    model = text_model()
    config = QuantizationConfig(backend=backend, embedding_bits=bits, exclude=("Linear",))
    found = quantize(model, config, text_batches())
    rows = {row.name: row for row in found.coverage.modules}
    assert all(rows[name].quantized for name in TABLES)
    expected = copy.deepcopy(model)
    for module in expected.modules():
        if isinstance(module, nn.Embedding):
            table = quantize_table(module.weight.detach().numpy(), bits)
            module.weight.data = torch.from_numpy(table.dequantized())
    batch = text_batches()[0]
    # OpenVINO has attention's own products in int8, too.
    near = 5e-3 if backend == "onnxruntime" else 0.03
    expect = logits(expected, batch).numpy()
    np.testing.assert_allclose(found.logits(batch), expect, rtol=near, atol=near)
    moved = float((logits(expected, batch) - logits(model, batch)).abs().max())
    assert moved > (0.1 if bits == 4 else 0)


@pytest.mark.usefixtures("shared_exports")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_table_that_is_left_out_stays_in_fp32(backend: Any) -> None:
    pytest.importorskip(backend)
    config = QuantizationConfig(backend=backend, exclude=("*word_embeddings",))
    found = quantize(text_model(), config, text_batches())
    rows = {row.name: row for row in found.coverage.modules}
    assert [rows[name].quantized for name in TABLES] == [False, True, True]
    assert rows[TABLES[0]].why == "excluded by the config"
    assert found.bytes > quantized(backend=backend).bytes


@pytest.mark.usefixtures("shared_exports")
def test_onnx_graphs_hold_no_zero_points_of_weights_and_no_long_names() -> None:
    onnx = pytest.importorskip("onnx")
    engine: Any = quantized().engine
    graph = onnx.load(str(engine.path)).graph
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 8
    assert all(len(node.input) == 3 for node in products)
    assert products[0].name == "bert.encoder.layer.0.attention.self.query"
    kept = {item.name for item in (*graph.input, *graph.output, *graph.initializer)}
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    assert max(len(name) for name in names - kept) <= 2
