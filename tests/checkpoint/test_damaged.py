"""Checkpoints that do not fit are refused in one sentence; nothing is loaded half."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification as AutoModelForText

from hfcompress.checkpoint.record import METHOD, Record
from hfcompress.errors import ModelError
from tests.tiny_models import uneven_model

LAYER = "bert.encoder.layer.0.intermediate.dense"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    uneven_model("bert").save_pretrained(tmp_path)
    return tmp_path


def change_record(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def change_tensors(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        AutoModelForText.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_shape_that_the_tensor_does_not_have(folder: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["modules"][LAYER] = {"weight": [41, 32], "bias": [41]}

    change_record(folder, change)
    refused(folder, rf"'{LAYER}\.weight' has the shape \[40, 32\] and .* \[41, 32\]")


def test_a_module_that_does_not_exist(folder: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["modules"]["bert.encoder.layer.7.output.dense"] = {"weight": [32, 4]}

    change_record(folder, change)
    refused(folder, r"layer\.7\.output\.dense' does not exist in BertForSequenceClassification")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("bert.encoder.layer.0", r"'bert\.encoder\.layer\.0' is a BertLayer .* not a Linear"),
        ("bert", r"'bert' is a BertModel"),
    ],
)
def test_a_module_that_is_no_linear(folder: Path, name: str, match: str) -> None:
    def change(record: dict[str, Any]) -> None:
        record["modules"][name] = {"weight": [32, 4]}

    change_record(folder, change)
    refused(folder, match)


def test_a_tensor_that_the_module_does_not_have(folder: Path) -> None:
    change_record(folder, lambda record: record["modules"][LAYER].update(scale=[3]))
    refused(folder, r"has no tensor 'scale'")


def test_a_shape_with_too_many_sizes(folder: Path) -> None:
    change_record(folder, lambda record: record["modules"][LAYER].update(weight=[1, 2, 3]))
    refused(folder, r"\[1, 2, 3\], and a Linear needs 2 sizes")


def test_a_tensor_that_is_missing(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.pop(f"{LAYER}.weight"))
    refused(folder, rf"'{LAYER}\.weight' is missing")


def test_a_tensor_of_another_shape(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({f"{LAYER}.bias": torch.zeros(3)}))
    refused(folder, rf"'{LAYER}\.bias' has the shape \[3\]")


@pytest.mark.parametrize("left", [0, 5, 1000, -1])
def test_a_truncated_file(folder: Path, left: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    refused(folder, r"model\.safetensors cannot be read .* damaged or cut off")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"shapes": {}}, "unknown field 'shapes'"),
        ({"modules": []}, "under 'modules' instead of a mapping"),
        ({"modules": {"a": 3}}, r"under 'modules\.a'"),
        ({"modules": {"a": {"weight": [2, -1]}}}, r"a\.weight the shape \[2, -1\]"),
        ({"modules": {"a": {"weight": [True]}}}, r"a\.weight the shape \[True\]"),
        ({"modules": {"a": {"weight": "2x3"}}}, r"a\.weight the shape '2x3'"),
        ({"packed": {"a": 1.5}}, "1.5 for a instead of a whole number"),
        ({"model": 3}, "not text"),
    ],
)
def test_a_record_that_nobody_wrote(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        Record.from_dict({"quant_method": METHOD, **fields})


def test_the_config_is_no_argument(tmp_path: Path) -> None:
    from hfcompress.checkpoint.hf_quantizer import CompressedConfig
    from tests.tiny_models import shrinkable_model

    shrinkable_model("bert").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="leave the argument out"):
        AutoModelForText.from_pretrained(tmp_path, quantization_config=CompressedConfig())
