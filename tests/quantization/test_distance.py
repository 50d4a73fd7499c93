"""A quantized model is compared with fp32 before it is returned: reported, warned of or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hfcompress.errors import ModelError, TargetError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.distance import LOST, WARN, lossy_modules, relative_error
from hfcompress.quantization.quantize import quantize
from tests.tiny_images import image_batches, image_model
from tests.tiny_models import text_batches, text_model

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("shared_exports")
BACKENDS = ["torch", "onnxruntime", "openvino"]


def with_outliers(size: float) -> Any:
    """A model in which one neuron's activations are many times the others'."""
    model = text_model()
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.bias[0] = size
        layer.output.dense.weight[:, 0] = 0
    return model


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_distance_is_that_of_the_engine(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    model, batches = text_model(), text_batches()
    made = quantize(model, QuantizationConfig.from_dict({"backend": backend}), batches)
    rows = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches]
    with torch.no_grad():
        dense = torch.cat([model(**row).logits for row in rows]).numpy()
    found = np.concatenate([made.logits(row) for row in rows])
    assert made.distance is not None
    assert made.distance.rows == len(dense)
    assert made.distance.error == pytest.approx(relative_error(found, dense), rel=1e-3)
    assert made.distance.error == pytest.approx(
        np.sqrt(((found - dense) ** 2).mean() / dense.var(0).mean()), rel=1e-3
    )
    assert 0 < made.distance.error < WARN
    manifest = json.loads((made.save(tmp_path / "f") / "hfcompress.json").read_text())
    assert manifest["done"]["distance"] == made.distance.to_dict()
    assert manifest["done"]["distance"]["calibration"] is True


def test_without_calibration_random_rows_are_compared() -> None:
    made = quantize(text_model(), QuantizationConfig())
    assert made.distance is not None
    assert (made.distance.rows, made.distance.calibration) == (16, False)
    assert made.distance.error < WARN
    assert not any("differ from fp32" in note for note in made.notes)


def test_a_warning_names_the_limit_and_the_modules_that_lose_most() -> None:
    made = quantize(with_outliers(150), QuantizationConfig(), text_batches())
    assert made.distance is not None
    assert made.distance.error > WARN
    (note,) = [note for note in made.notes if "differ from fp32" in note]
    assert "(more than 25% is a warning); most is lost in bert.encoder.layer.0.output.dense" in note


def test_refuses_a_model_that_loses_its_answers_and_leaves_it_as_it_was() -> None:
    model = with_outliers(20_000)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ModelError, match=r"loses its answers with backend onnxruntime in mode dynamic: .* most is "
        r"lost in bert.encoder.layer.0.output.dense.*; keep what loses most in fp32 \(exclude\)"
    ):  # fmt: skip
        quantize(model, QuantizationConfig(), text_batches())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kept = QuantizationConfig(exclude=("bert.encoder.layer.0.output.dense",))
    made = quantize(model, kept, text_batches())
    assert made.distance is not None
    assert made.distance.error < WARN


def test_numbers_that_are_not_finite_are_lost() -> None:
    dense = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
    assert relative_error(np.full_like(dense, np.nan), dense) == float("inf")
    assert relative_error(np.tile(dense.mean(0), (2, 1)), dense) == pytest.approx(1)
    assert LOST < 1
    constant = np.ones((4, 2), np.float32)
    assert relative_error(constant + 1e-4, constant) == pytest.approx(0.1, rel=0.01)


def test_lossy_modules_are_ranked_and_nothing_stays_changed() -> None:
    model = with_outliers(150)
    rows = [{k: v.numpy() for k, v in text_batches()[0].items() if k != "labels"}]
    names = lossy_modules(model, QuantizationConfig(), rows)
    assert names[0] == "bert.encoder.layer.0.output.dense"
    assert len(names) == 3
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_refuses_what_quantizes_nothing() -> None:
    with pytest.raises(TargetError, match=r"quantizes nothing of Bert.* \(.*excluded by the conf"):
        quantize(text_model(), QuantizationConfig(backend="torch", exclude=("*",)))


# --- the engine's best mode --------------------------------------------------------------------


class Clipped(nn.Module):
    """Convolutions whose activations are cut at 6, with a channel far above it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.mul_(5)
                layer.get_parameter("bias")[0] = 80

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states = self.second(self.first(pixel_values).clamp(0, 6)).clamp(0, 6)
        logits: torch.Tensor = self.head(states.mean((2, 3)))
        return logits


def test_static_ranges_of_onnxruntime_lie_behind_the_activations(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    images = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    made = quantize(Clipped(), QuantizationConfig(mode="static"), images)
    assert made.distance is not None
    assert made.distance.error < 0.2
    graph = onnx.load(str(made.save(tmp_path / "folder") / "model.onnx")).graph
    assert not {node.op_type for node in graph.node} & {"Clip", "Relu"}


def modes_tried(
    monkeypatch: pytest.MonkeyPatch, model: Any, batches: Any
) -> tuple[Any, list[bool]]:
    openvino = pytest.importorskip("hfcompress.quantization.backends.openvino")
    pytest.importorskip("openvino")
    tried: list[bool] = []
    plain = openvino._quantize

    def record(*arguments: Any) -> Any:
        tried.append(arguments[-1])
        return plain(*arguments)

    monkeypatch.setattr(openvino, "_quantize", record)
    return quantize(model, QuantizationConfig(backend="openvino"), batches), tried


def test_openvino_uses_its_transformer_mode_for_attention_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, tried = modes_tried(monkeypatch, image_model("convnext"), image_batches())
    assert tried == [False]
    assert made.distance.error < 0.1
    assert modes_tried(monkeypatch, text_model(), text_batches())[1] == [True]
    assert modes_tried(monkeypatch, image_model("vit"), image_batches())[1] == [True]


class Hybrid(nn.Module):
    """Convolutions before attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolutions = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2))
        self.query, self.key, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        states = self.convolutions(pixel_values).flatten(2).mT
        weights = (self.query(states) @ self.key(states).mT).softmax(-1)
        logits: torch.Tensor = self.head((weights @ states).mean(1))
        return logits


def test_openvino_takes_the_closer_mode_for_hybrids(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("hfcompress.quantization.backends.openvino")
    pytest.importorskip("openvino")
    errors: list[float] = []
    plain = openvino.relative_error

    def record(found: Any, dense: Any) -> float:
        errors.append(plain(found, dense))
        return errors[-1]

    monkeypatch.setattr(openvino, "relative_error", record)
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    made, tried = modes_tried(monkeypatch, Hybrid(), images)
    assert tried == [True, False]
    assert made.distance.error == pytest.approx(min(errors), rel=0.02)
