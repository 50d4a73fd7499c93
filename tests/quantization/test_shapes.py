"""One shape alone: engines that are faster so, batches padded to it, what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfcompress import Calibration, load
from hfcompress.errors import ConfigError, DataError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays, Shapes, UsualShape, fixed
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.quantize import quantize
from hfcompress.recipes.schema import LatencyConfig
from hfcompress.sweep.timing import time_model
from tests.tiny_images import image_model
from tests.tiny_models import text_batches, text_model, tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer


class Sums:
    """An engine that adds what it reads up, and notes the shapes that it was given."""

    name, bytes, digest = "sums", 0, ""

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        self.shape = shape
        self.inputs: tuple[str, ...] = ("input_ids",)
        self.made: list[Sums] = []
        self.seen: list[tuple[int, ...]] = []

    def fixed(self, shapes: Shapes) -> Sums:
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


def openvino(model: Any = None) -> QuantizedModel:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    config = QuantizationConfig(backend="openvino")
    return quantize(model or text_model(), config, Calibration(text_batches()))


@pytest.mark.parametrize(("rows", "tokens"), [(3, 5), (1, 5), (3, 2), (2, 1)])
def test_what_fits_is_padded_and_comes_back_in_its_own_size(rows: int, tokens: int) -> None:
    engine, given = Sums(), ids(rows, tokens)
    usual = UsualShape(engine, (3, 5))
    for _ in range(2):
        assert usual.takes(given)
        assert np.array_equal(usual.logits(given), given["input_ids"].sum(1, keepdims=True))
    (made,) = engine.made
    assert made.seen == [(3, 5)] * 2


def test_ids_are_padded_with_the_tokenizer_s_own() -> None:
    """A decoder reads its answer at the last token that is no padding."""
    seen: list[Any] = []

    class Noted(Sums):
        def fixed(self, shapes: Shapes) -> Sums:
            return self

        def logits(self, arrays: Arrays) -> Any:
            seen.append(arrays)
            return np.zeros((len(arrays["input_ids"]), 1))

    UsualShape(Noted(), (2, 3), pad_id=7).logits(ids(1, 2))
    assert seen[0]["input_ids"].tolist() == [[0, 1, 7], [7, 7, 7]]
    assert seen[0]["attention_mask"].tolist() == [[1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("family", ["gpt2", "roberta", "distilbert"])
def test_a_family_says_the_same_padded(family: str) -> None:
    pytest.importorskip("openvino")
    model = text_model(family)
    model.config.pad_token_id = 5
    engine = quantize(model, QuantizationConfig(backend="openvino", mode="none")).engine
    given = {
        "input_ids": np.array([[8, 9, 12, 30]]), "attention_mask": np.ones((1, 4), np.int64)
    }  # fmt: skip
    found = UsualShape(engine, (2, 9), pad_id=5).logits(given)
    np.testing.assert_allclose(found, engine.logits(given), atol=1e-5)


@pytest.mark.parametrize(("rows", "tokens"), [(4, 5), (3, 6), (9, 9)])
def test_what_is_larger_is_not_for_it(rows: int, tokens: int) -> None:
    assert not UsualShape(Sums(), (3, 5)).takes(ids(rows, tokens))


@pytest.mark.parametrize("shape", [(0, 5), (3, -1), (3,), (1, 2, 3)])
def test_shapes_that_are_none(shape: Any) -> None:
    with pytest.raises(ConfigError, match=r"shape is examples and tokens, such as \(1, 32\), not"):
        UsualShape(Sums(), shape)


def test_engines_without_such_a_form_stay_as_they_are() -> None:
    made = quantize(text_model(), QuantizationConfig(backend="torch"))
    assert fixed(made.engine, ids(1, 9)) is made.engine
    assert not UsualShape(made.engine, (6, 9)).takes(ids(1, 9))


def test_openvino_for_one_shape_gives_the_same_logits() -> None:
    engine = openvino().engine
    batch = {name: value.numpy() for name, value in text_batches()[0].items() if name != "labels"}
    one = fixed(engine, batch)
    assert one is not engine
    np.testing.assert_allclose(one.logits(batch), engine.logits(batch), atol=1e-5)
    more = {name: np.concatenate([value, value]) for name, value in batch.items()}
    with pytest.raises(DataError, match="of 6 x 9 alone and was given 12 x 9; load the model"):
        one.logits(more)


def test_openvino_for_one_batch_of_images() -> None:
    pytest.importorskip("openvino")
    model = image_model("resnet")
    engine = quantize(model, QuantizationConfig(backend="openvino", mode="none")).engine
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32).numpy()}
    one = fixed(engine, pixels)
    np.testing.assert_allclose(one.logits(pixels), engine.logits(pixels), atol=1e-5)
    usual = UsualShape(engine, (4, 1))
    assert usual.takes(pixels)
    np.testing.assert_allclose(usual.logits(pixels), engine.logits(pixels), atol=1e-5)


def test_a_folder_loaded_with_a_shape_says_the_same(tmp_path: Path) -> None:
    folder = openvino(tiny_bert()).save(tmp_path / "model", tiny_tokenizer())
    texts = ["a good film", "the cast is dull and the plot is weak " * 3, "fine"]
    plain, shaped = load(folder), load(folder, shape=(2, 8))
    usual: Any = shaped._usual
    assert [usual.takes(shaped._prepare([text])) for text in texts] == [True, False, True]  # type: ignore[misc]
    np.testing.assert_allclose(
        shaped.scores(texts, batch_size=1), plain.scores(texts, batch_size=1), atol=1e-5
    )
    assert usual._made is not None


def test_timing_takes_the_form_of_that_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    made = openvino(tiny_bert())
    asked: list[tuple[int, ...]] = []
    engine: Any = made.engine
    make = engine.fixed

    def noted(shapes: Shapes) -> Any:
        asked.append(shapes["input_ids"])
        return make(shapes)

    monkeypatch.setattr(engine, "fixed", noted)
    for wanted in (False, True):
        config = LatencyConfig(batch_size=2, length=8, repeats=1, warmup=0, fixed=wanted)
        assert time_model(made, tiny_bert(), config)["fixed"] is wanted
    assert asked == [(2, 8)]
