"""Static shapes: engines compiled for one shape, batches padded to it, batches that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfcompress import load
from hfcompress.checkpoint.save import record_shapes
from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.models.sublayers import sublayers
from hfcompress.models.surgery import keep_units
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays, Shapes, StaticShape, with_static_shape
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.quantize import quantize
from hfcompress.recipes.schema import LatencyConfig
from hfcompress.sweep.timing import time_model
from tests.quantization.quantized import quantized
from tests.tiny_images import image_model
from tests.tiny_models import logits, shrinkable_model, text_batches, text_model, tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("shared_exports")


class Sums:
    """An engine that sums its inputs and records their shapes."""

    name, bytes, digest = "sums", 0, ""

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        self.shape = shape
        self.inputs: tuple[str, ...] = ("input_ids",)
        self.made: list[Sums] = []
        self.seen: list[tuple[int, ...]] = []

    def with_shapes(self, shapes: Shapes) -> Sums:
        self.made.append(Sums(shapes["input_ids"]))
        return self.made[-1]

    def logits(self, arrays: Arrays) -> Any:
        self.seen.append(arrays["input_ids"].shape)
        assert self.shape in (None, arrays["input_ids"].shape)
        return arrays["input_ids"].sum(axis=1, keepdims=True)

    def write(self, folder: Path) -> None:
        """Nothing."""


def ids(rows: int, tokens: int) -> dict[str, Any]:
    values = np.arange(rows * tokens).reshape(rows, tokens)
    return {"input_ids": values, "attention_mask": np.ones_like(values)}


def openvino() -> QuantizedModel:
    """The tiny BERT of the tokenizer in OpenVINO."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    return quantize(
        tiny_bert(), QuantizationConfig(backend="openvino"), text_batches(vocabulary=25)
    )


@pytest.mark.parametrize(("rows", "tokens"), [(3, 5), (1, 5), (3, 2), (2, 1)])
def test_smaller_batches_are_padded_and_their_logits_cut_back(rows: int, tokens: int) -> None:
    engine, given = Sums(), ids(rows, tokens)
    static = StaticShape(engine, (3, 5))
    for _ in range(2):
        assert static.fits(given)
        assert np.array_equal(static.logits(given), given["input_ids"].sum(1, keepdims=True))
    (made,) = engine.made
    assert made.seen == [(3, 5)] * 2


def test_ids_are_padded_with_the_tokenizer_s_pad_id() -> None:
    """A decoder classifies at the last token that is not padding."""
    seen: list[Any] = []

    class Noted(Sums):
        def with_shapes(self, shapes: Shapes) -> Sums:
            return self

        def logits(self, arrays: Arrays) -> Any:
            seen.append(arrays)
            return np.zeros((len(arrays["input_ids"]), 1))

    StaticShape(Noted(), (2, 3), pad_id=7).logits(ids(1, 2))
    assert seen[0]["input_ids"].tolist() == [[0, 1, 7], [7, 7, 7]]
    assert seen[0]["attention_mask"].tolist() == [[1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("family", ["gpt2", "roberta", "distilbert"])
def test_padding_does_not_change_a_family_s_logits(family: str) -> None:
    pytest.importorskip("openvino")
    model = text_model(family)
    model.config.pad_token_id = 5
    engine = quantize(model, QuantizationConfig(backend="openvino", mode="none")).engine
    given = {
        "input_ids": np.array([[8, 9, 12, 30]]), "attention_mask": np.ones((1, 4), np.int64)
    }  # fmt: skip
    found = StaticShape(engine, (2, 9), pad_id=5).logits(given)
    np.testing.assert_allclose(found, engine.logits(given), atol=1e-5)


@pytest.mark.parametrize(("rows", "tokens"), [(4, 5), (3, 6), (9, 9)])
def test_larger_batches_do_not_fit(rows: int, tokens: int) -> None:
    assert not StaticShape(Sums(), (3, 5)).fits(ids(rows, tokens))


@pytest.mark.parametrize("shape", [(0, 5), (3, -1), (3,), (1, 2, 3)])
def test_refuses_a_shape_that_is_not_two_positive_sizes(shape: Any) -> None:
    with pytest.raises(ConfigError, match=r"shape is examples and tokens, such as \(1, 32\), not"):
        StaticShape(Sums(), shape)


def test_engines_without_static_shapes_are_used_unchanged() -> None:
    made = quantize(text_model(), QuantizationConfig(backend="torch"))
    assert with_static_shape(made.engine, ids(1, 9)) is made.engine
    assert not StaticShape(made.engine, (6, 9)).fits(ids(1, 9))


def test_openvino_for_one_shape_gives_the_same_logits() -> None:
    engine = quantized(backend="openvino").engine
    batch = {name: value.numpy() for name, value in text_batches()[0].items() if name != "labels"}
    one = with_static_shape(engine, batch)
    assert one is not engine
    np.testing.assert_allclose(one.logits(batch), engine.logits(batch), atol=1e-5)
    more = {name: np.concatenate([value, value]) for name, value in batch.items()}
    with pytest.raises(DataError, match="of 6 x 9 and received 12 x 9; load the model"):
        one.logits(more)


def test_openvino_for_one_batch_of_images() -> None:
    pytest.importorskip("openvino")
    model = image_model("resnet")
    engine = quantize(model, QuantizationConfig(backend="openvino", mode="none")).engine
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32).numpy()}
    one = with_static_shape(engine, pixels)
    np.testing.assert_allclose(one.logits(pixels), engine.logits(pixels), atol=1e-5)
    static = StaticShape(engine, (4, 1))
    assert static.fits(pixels)
    np.testing.assert_allclose(static.logits(pixels), engine.logits(pixels), atol=1e-5)


def test_a_folder_loaded_with_a_shape_gives_the_same_scores(tmp_path: Path) -> None:
    folder = openvino().save(tmp_path / "model", tiny_tokenizer())
    texts = ["a good film", "the cast is dull and the plot is weak " * 3, "fine"]
    plain, shaped = load(folder), load(folder, shape=(2, 8))
    static: Any = shaped._static
    assert [static.fits(shaped._prepare([text])) for text in texts] == [True, False, True]  # type: ignore[misc]
    np.testing.assert_allclose(
        shaped.scores(texts, batch_size=1), plain.scores(texts, batch_size=1), atol=1e-5
    )
    assert static._compiled is not None


def test_timing_compiles_for_the_shape_that_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    made = openvino()
    asked: list[tuple[int, ...]] = []
    engine: Any = made.engine
    make = engine.with_shapes

    def noted(shapes: Shapes) -> Any:
        asked.append(shapes["input_ids"])
        return make(shapes)

    monkeypatch.setattr(engine, "with_shapes", noted)
    for wanted in (False, True):
        config = LatencyConfig(batch_size=2, length=8, repeats=1, warmup=0, fixed=wanted)
        assert time_model(made, tiny_bert(), config)["fixed"] is wanted
    assert asked == [(2, 8)]


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_a_layer_that_lost_all_its_units_stays_as_it_is(
    backend: str, kind: str, tmp_path: Path
) -> None:
    if backend != "torch":
        pytest.importorskip(backend)
    model = shrinkable_model("bert")
    sublayer = next(found for found in sublayers(model) if found.kind == kind)
    keep_units(model, sublayer, [])
    record_shapes(model)
    narrow = {"reduce_range": True} if backend == "onnxruntime" else {}
    config = QuantizationConfig.from_dict({"backend": backend, **narrow})
    inputs = text_batches()[0]
    if backend == "openvino":
        with pytest.raises(ModelError, match="reads no layer without units"):
            quantize(model, config, [inputs])
        return
    made = quantize(model, config)
    rows = {row.name: row for row in made.coverage.modules}
    assert rows[sublayer.name].why == "shrinking left it no weights"
    assert rows["classifier"].quantized
    expected = logits(model, inputs).numpy()
    assert np.abs(made.logits(inputs) - expected).max() < 0.5 * np.ptp(expected)
    again = load(made.save(tmp_path / "folder"))
    np.testing.assert_allclose(again.logits(inputs), made.logits(inputs), atol=1e-5)
