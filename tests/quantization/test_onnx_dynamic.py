"""Weights are quantized some at a time, and it makes no difference."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from hfcompress.quantization.backends import onnx_dynamic as onnx_parts
from hfcompress.quantization.backends.onnx_dynamic import WeightStore, quantize_weights
from hfcompress.quantization.backends.onnx_graph import quantize_tables
from tests.tiny_models import text_model

OPTIONS: dict[str, Any] = {
    "per_channel": True,
    "weight_type": QuantType.QInt8,
    "op_types_to_quantize": ["MatMul"],
    "extra_options": {"MatMulConstBOnly": True},
}


@pytest.fixture
def external(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """A model whose weights lie beside its graph."""
    made = exported(text_model("bert"), one_file=False)
    return shutil.copytree(made.parent, tmp_path / "external") / made.name


def constants(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


@pytest.mark.parametrize("part_bytes", [1, 10**9])
@pytest.mark.parametrize("excluded", [[], ["bert.encoder.layer.0.output.dense"]])
def test_parts_are_what_the_whole_is(
    external: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int, excluded: list[str]
) -> None:
    options = {**OPTIONS, "nodes_to_exclude": excluded}
    whole = external.with_name("whole.onnx")
    quantize_dynamic(str(external), str(whole), **options)
    expected = onnx.load(str(whole))
    quantize_tables(expected, 8, excluded)
    monkeypatch.setattr(onnx_parts, "PART_BYTES", part_bytes)
    monkeypatch.setattr(onnx_parts, "_SMALL", 64)
    model = onnx.load(str(external), load_external_data=False)
    made = quantize_weights(model, external.parent, excluded, options, 8)
    onnx.checker.check_model(made)
    found, wanted = constants(made), constants(expected)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert np.array_equal(found[name], values), name
    assert [item.name for item in made.graph.input] == [item.name for item in expected.graph.input]
    assert run(made, external) == pytest.approx(run(expected, external), abs=1e-6)
    assert not external.with_name("part.onnx").exists()


def run(model: Any, beside: Path) -> Any:
    import onnxruntime

    path = beside.with_name("session.onnx")
    onnx.save(model, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shape = (2, 9)
    arrays = {item.name: np.ones(shape, np.int64) for item in session.get_inputs()}
    return session.run(None, arrays)[0]


def test_the_quantizer_never_sees_more_than_a_part(
    external: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def spied(model: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(sum(v.nbytes for v in constants(model).values() if v.nbytes > 1024))
        return quantize_dynamic(model, *args, **kwargs)

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", spied)
    monkeypatch.setattr(onnx_parts, "PART_BYTES", 1)
    monkeypatch.setattr(onnx_parts, "_SMALL", 1024)
    model = onnx.load(str(external), load_external_data=False)
    sizes = [4 * int(np.prod(item.dims)) for item in model.graph.initializer]
    quantize_weights(model, external.parent, [], OPTIONS, 8)
    assert len(seen) > 4
    assert max(seen) < sum(sizes) / 3


def test_constants_come_back_as_they_were(external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_parts, "_SMALL", 64)
    before = constants(onnx.load(str(external)))
    model = onnx.load(str(external), load_external_data=False)
    inputs = len(model.graph.input)
    store = WeightStore(model, external.parent)
    assert len(model.graph.input) > inputs
    store.put_back(model)
    assert len(model.graph.input) == inputs
    after = constants(model)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], before[name]) for name in before)
