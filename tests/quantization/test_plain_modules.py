"""Modules that are no transformers model: quantized from an example batch, saved and loaded."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertModel,
    ViTImageProcessorPil,
)

import hfcompress
from hfcompress.errors import CalibrationError, DataError, ModelError, TargetError
from hfcompress.layers.sparse_linear import sparsify
from hfcompress.quantization.config import MixedPrecisionConfig, QuantizationConfig
from hfcompress.quantization.qat import quantizable
from hfcompress.quantization.quantize import quantize
from tests.tiny_models import ConvStudent, tiny_bert

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("shared_exports")
WAYS: list[dict[str, Any]] = [
    {"backend": "torch"},
    {"backend": "onnxruntime", "mode": "dynamic"},
    {"backend": "onnxruntime", "mode": "static"},
    {"backend": "onnxruntime", "mode": "none"},
    {"backend": "openvino"},
    {"backend": "openvino", "mode": "none"},
]


def named(way: dict[str, Any]) -> str:
    return "-".join(way.values())


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 5),
    )  # fmt: skip


class Mlp(nn.Module):
    """Takes ``x``, and has a dropout that depends on the module's own mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(12, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        states = nn.functional.dropout(self.first(x).relu(), 0.5, self.training)
        found: Tensor = self.last(states)
        return found


class Wrapped(nn.Module):
    """A transformers encoder with a head of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = tiny_bert().bert
        self.head = nn.Linear(32, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return {"logits": self.head(states[:, 0])}


def texts(rows: int, length: int, vocabulary: int = 25) -> dict[str, Tensor]:
    ids = torch.randint(5, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def images(rows: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=draw)}


def numbers(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(seed))


KINDS: dict[str, tuple[Any, Any, Any]] = {
    "cnn": (cnn, images(8), images(3)),
    "mlp": (Mlp, numbers(128, 1), {"x": numbers(5, 2)}),
    "wrapped": (Wrapped, texts(6, 9), texts(2, 14)),
    "texts": (ConvStudent, texts(6, 9), texts(3, 5)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_modules_give_the_modules_output(
    kind: str, way: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip(way["backend"])
    make, example, other = KINDS[kind]
    model = make().train()
    modes = {name: module.training for name, module in model.named_modules()}
    small = quantize(model, QuantizationConfig.from_dict(way), [example])
    assert modes == {name: module.training for name, module in model.named_modules()}
    with torch.no_grad():
        found = (
            model.eval()(*other.values()) if kind != "cnn" else model.eval()(other["pixel_values"])
        )
    wanted = found["logits"] if isinstance(found, dict) else found
    got = small(**other).logits
    assert (got - wanted).abs().max() < 0.3 * wanted.std()
    torch.testing.assert_close(small(*other.values()).logits, got)
    assert small.distance is not None
    if way.get("mode") != "none":
        assert small.coverage.share_of_bytes > (0.3 if kind != "texts" else 0.02)
    if way["backend"] == "torch":
        with pytest.raises(
            ModelError, match=r"cannot contain the code of .*; quantize with backend"
        ):
            small.save(tmp_path / "folder")
        return
    folder = small.save(tmp_path / "folder")
    loaded = hfcompress.load(folder)
    torch.testing.assert_close(torch.from_numpy(loaded.logits(other)), got)
    assert loaded.labels == tuple(f"LABEL_{place}" for place in range(wanted.shape[1]))
    again = pickle.loads(pickle.dumps(loaded))
    np.testing.assert_array_equal(again.logits(other), loaded.logits(other))
    assert json.loads((folder / "config.json").read_text())["architectures"] == [
        type(model).__name__
    ]


def signal_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


def volume_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 3)).eval()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("make", "shape"), [(signal_network, (16, 3, 20)), (volume_network, (16, 2, 4, 4, 4))]
)
def test_convolutions_of_one_and_three_dimensions_become_int8(
    make: Callable[[], nn.Module], shape: tuple[int, ...], backend: str
) -> None:
    pytest.importorskip(backend)
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    small = quantize(make(), QuantizationConfig.from_dict({"backend": backend}), [batch])
    assert small.config.resolved_mode == "static"
    rows = {row.name: row for row in small.coverage.modules}
    weights = [name for name, row in rows.items() if "Norm" not in row.kind]
    assert all(rows[name].quantized for name in weights)
    assert small.coverage.share_of_macs == 1.0
    kept = quantize(
        make(), QuantizationConfig.from_dict({"backend": backend, "exclude": ["0"]}), [batch]
    )
    assert [row.name for row in kept.coverage.modules if row.why == "excluded by the config"] == [
        "0"
    ]


def test_a_network_of_convolutions_alone_is_quantized() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 5), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    batch = torch.randn(8, 3, 9, generator=torch.Generator().manual_seed(0))
    assert quantize(model, QuantizationConfig(), [batch]).coverage.share_of_bytes > 0.9
    with pytest.raises(TargetError, match="has no Linear to quantize, and dynamic quantization"):
        quantize(model, QuantizationConfig(mode="dynamic"), [batch])


def test_a_saved_processor_reads_images_for_a_plain_module(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (20, 24, 3), np.uint8) for _ in range(2)]
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    model = cnn().eval()
    small = quantize(
        model, QuantizationConfig(mode="none"), {"pixel_values": torch.randn(4, 3, 16, 16)}
    )
    classify = hfcompress.load(small.save(tmp_path / "folder", processor))
    with torch.no_grad():
        wanted = model(processor(pictures, return_tensors="pt")["pixel_values"]).softmax(-1)
    np.testing.assert_allclose(classify.scores(pictures), wanted.numpy(), atol=1e-3)


def test_batches_come_in_many_forms() -> None:
    torch.manual_seed(0)
    rows = torch.randn(16, 12)
    parts = [rows[:8], rows[8:]]
    config = QuantizationConfig(mode="static")
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(rows, torch.zeros(16).long()), batch_size=8
    )
    forms: list[Any] = [
        [{"x": part} for part in parts],
        parts,
        [part.numpy() for part in parts],
        loader,
        ({"x": part, "labels": torch.zeros(8)} for part in parts),
    ]
    expected = quantize(Mlp(), config, forms[0])(x=rows).logits
    for form in forms[1:]:
        torch.testing.assert_close(quantize(Mlp(), config, form)(rows).logits, expected)
    one = quantize(Mlp(), config, rows)
    assert one.distance is not None
    assert one.distance.rows == 16


def test_mixed_precision_and_exclusions_name_the_modules_own_names() -> None:
    config = QuantizationConfig(backend="torch", exclude=("first",))
    small = quantize(Mlp(), config, torch.randn(8, 12))
    quantized = {module.name: module.quantized for module in small.coverage.modules}
    assert quantized == {"first": False, "last": True}
    mixed = QuantizationConfig(backend="torch", mixed=MixedPrecisionConfig(max_kl=1e-9))
    report = quantize(Mlp(), mixed, torch.randn(8, 12)).mixed
    assert report is not None
    assert set(report.names) <= {"first", "last"}


class Loose(nn.Module):
    """Gives something else than logits of rows."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(4, 3), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.layer(x))


def test_refuses_modules_and_batches_in_a_sentence() -> None:
    rows, config = torch.randn(4, 12), QuantizationConfig(backend="torch")
    with pytest.raises(CalibrationError, match="Mlp is not a transformers model, so its inputs"):
        quantize(Mlp(), config)
    with pytest.raises(CalibrationError, match=r"Mlp fails on the example batch \(x \[4, 5\]\)"):
        quantize(Mlp(), config, rows[:, :5])
    with pytest.raises(CalibrationError, match="name the batch's tensors as forward does"):
        quantize(Wrapped(), config, {"ids": rows, "mask": rows})
    with pytest.raises(CalibrationError, match="has no rows; give batches of examples"):
        quantize(Mlp(), config, rows[:0])
    with pytest.raises(CalibrationError, match=r"must be dicts of tensors .*, not str"):
        quantize(Mlp(), config, ["a text"])
    with pytest.raises(ModelError, match=r"the shape \[2\] for 2 rows; it must return \[rows"):
        quantize(Loose(lambda logits: logits[:, 0]), config, rows[:, :4])
    with pytest.raises(ModelError, match=r"returns dict without logits \(its tensors are a, b\)"):
        quantize(Loose(lambda logits: {"a": logits, "b": logits}), config, rows[:, :4])
    with pytest.raises(TargetError, match="LSTM has no Linear or convolution"):
        quantize(nn.LSTM(4, 3), config, rows[:, :4])


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_refuses_models_without_a_head(backend: str) -> None:
    with pytest.raises(ModelError, match="without logits"):
        quantize(tiny_bert(kind=BertModel), QuantizationConfig.from_dict({"backend": backend}))


def test_refuses_calibration_rows_that_the_model_cannot_read() -> None:
    rows = {"input_ids": torch.full((2, 5), 1000)}
    with pytest.raises(CalibrationError, match=r"cannot read the calibration rows \(input_ids\)"):
        quantize(tiny_bert(), QuantizationConfig(mode="static"), [rows])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_numbers_of_any_type_are_read(backend: str) -> None:
    pytest.importorskip(backend)
    small = quantize(tiny_bert(), QuantizationConfig.from_dict({"backend": backend}), [texts(6, 9)])
    batch = texts(2, 5)
    expected = small(**batch).logits
    found = small(
        input_ids=batch["input_ids"].int(), attention_mask=batch["attention_mask"].bool()
    ).logits
    torch.testing.assert_close(found, expected)
    model = quantize(Mlp(), QuantizationConfig.from_dict({"backend": backend}), numbers(64, 0))
    rows = numbers(3, 1)
    torch.testing.assert_close(model(rows.double()).logits, model(rows).logits)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_refuses_a_batch_of_another_shape_in_a_sentence(backend: str) -> None:
    pytest.importorskip(backend)
    small = quantize(Mlp(), QuantizationConfig.from_dict({"backend": backend}), numbers(64, 0))
    with pytest.raises(DataError, match=r"the model cannot read a batch of x \[2, 5\]"):
        small(torch.zeros(2, 5))


def test_a_bench_refuses_the_folder_of_a_plain_module(tmp_path: Path) -> None:
    folder = quantize(Mlp(), QuantizationConfig(), numbers(64, 0)).save(tmp_path / "folder")
    with pytest.raises(ModelError, match="does not say which inputs its model reads"):
        hfcompress.bench(str(folder))


def test_torchao_refuses_plain_modules() -> None:
    pytest.importorskip("torchao")
    with pytest.raises(
        ModelError, match="is not a transformers model, which backend torchao needs"
    ):
        quantize(Mlp(), QuantizationConfig(backend="torchao"), torch.randn(4, 12))


class Router(nn.Linear):
    """A Linear that also chooses, as routers of experts do."""

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        scores = super().forward(input)
        return scores, scores.argmax(-1)


class ScaledTable(nn.Embedding):
    """A table that scales its vectors, as Gemma's does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 8.0


class Routed(nn.Module):
    """A table, a router and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.router = ScaledTable(20, 8), Router(8, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        scores, chosen = self.router(self.table(ids).mean(1))
        found: Tensor = self.head(scores + chosen[:, None])
        return found


def test_layers_that_compute_more_than_their_class_stay() -> None:
    torch.manual_seed(0)
    model, batch = Routed(), {"ids": torch.randint(20, (16, 5))}
    small = quantize(model, QuantizationConfig(backend="torch"), [batch])
    done = {item.name: item for item in small.coverage.modules}
    assert done["head"].quantized
    assert done["router"].why == "its class computes more than a matrix product"
    expected = model(**batch).detach().numpy()
    np.testing.assert_allclose(small.logits(batch), expected, atol=0.05 * np.abs(expected).max())
    engine = QuantizationConfig(backend="onnxruntime")
    assert set(quantizable(model, engine)) == {"head"}
    sparsify(model, batch_size=1, length=4)
    assert isinstance(model.router, Router)
