"""Checkpoints that do not fit are refused in one sentence; nothing is loaded half."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification as AutoModelForText
from transformers import BertForMaskedLM, BertForTokenClassification, BertModel

from hfcompress.checkpoint.record import METHOD, Record
from hfcompress.checkpoint.save import save_compressed
from hfcompress.errors import ModelError
from hfcompress.layers.int8_linear import Int8Linear
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import prune
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


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    model = uneven_model("bert")
    prune(model, PruningConfig(sparsity=0.8))
    save_compressed(model, tmp_path, sparse=True)
    return tmp_path


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def first_layer_only(record: dict[str, Any]) -> None:
    for part in ("modules", "packed"):
        record[part] = {k: v for k, v in record.get(part, {}).items() if ".layer.0." in k}


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_another_number_of_layers(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    change_config(folder, num_hidden_layers=9)
    refused(folder, r"'bert\.encoder\.layer\.\d\.\S+' is missing, which config\.json builds")
    change_record(folder, first_layer_only)
    change_config(folder, num_hidden_layers=1)
    refused(folder, r"config\.json builds no tensor for 'bert\.encoder\.layer\.1\.")
    with pytest.raises(ModelError, match="builds no tensor for"):
        BertModel.from_pretrained(folder)


@pytest.mark.parametrize("part", ["modules", "packed"])
def test_an_entry_that_is_missing(part: str, packed: Path) -> None:
    change_record(packed, lambda record: record[part].pop(LAYER))
    refused(packed, rf"'{LAYER}\.(weight|bias)' has the shape")


def test_a_recorded_bias_that_is_stored_all_the_same(folder: Path) -> None:
    change_record(folder, lambda record: record["modules"][LAYER].update(bias=None))
    refused(folder, rf"config\.json builds no tensor for '{LAYER}\.bias'")


def test_tensors_that_no_entry_names(folder: Path) -> None:
    norm = "bert.encoder.layer.0.output.LayerNorm"
    change_tensors(folder, lambda tensors: tensors.update({f"{norm}.more": torch.zeros(2)}))
    refused(folder, rf"config\.json builds no tensor for '{norm}\.more'")
    change_tensors(folder, lambda tensors: tensors.pop(f"{norm}.more"))
    change_tensors(folder, lambda tensors: tensors.pop(f"{norm}.bias"))
    refused(folder, rf"'{norm}\.bias' is missing, which config\.json builds")


def test_a_bitmask_of_another_type(packed: Path) -> None:
    name = f"{LAYER}.weight"
    change_tensors(packed, lambda tensors: tensors.update({name: tensors[name].float()}))
    refused(packed, rf"'{LAYER}\.weight' has the type F32 instead of U8")


def test_an_entry_under_two_kinds(packed: Path) -> None:
    change_record(packed, lambda record: record.update(int8=[LAYER]))
    refused(packed, f"names '{LAYER}' under int8 and under packed")


def test_without_the_record_nothing_is_made_up(packed: Path) -> None:
    path = packed / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    for kind in (AutoModelForText, BertModel):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            kind.from_pretrained(packed)


def test_other_heads_still_load(packed: Path) -> None:
    for kind in (BertModel, BertForMaskedLM, BertForTokenClassification):
        kind.from_pretrained(packed)
    wider = AutoModelForText.from_pretrained(packed, num_labels=7, ignore_mismatched_sizes=True)
    assert wider.config.num_labels == 7


@pytest.mark.parametrize("kind", ["folder", "packed", "int8"])
def test_a_flipped_bit_is_refused(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    save_compressed(AutoModelForText.from_pretrained(folder), folder, sparse=kind == "packed")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    refused(folder, r"model\.safetensors differs from what was saved")
    path.write_bytes(whole)
    change_config(folder, layer_norm_eps=1e-3)
    refused(folder, r"config\.json differs .* remove 'digests' from its quantization_config")
    change_record(folder, lambda record: record.pop("digests"))
    assert AutoModelForText.from_pretrained(folder).config.layer_norm_eps == 1e-3


def test_a_model_that_is_saved_again_carries_no_old_digests(folder: Path) -> None:
    save_compressed(AutoModelForText.from_pretrained(folder), folder)
    model = AutoModelForText.from_pretrained(folder)
    model.classifier.bias.data.fill_(0.5)
    model.save_pretrained(folder)
    assert AutoModelForText.from_pretrained(folder).classifier.bias.tolist() == [0.5] * 3


def test_a_float_of_integers_is_refused(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}.bias"] = tensors[f"{LAYER}.bias"].to(torch.int32)

    change_tensors(folder, change)
    refused(folder, rf"'{LAYER}\.bias' has the type I32 instead of a float")


@pytest.fixture
def int8(tmp_path: Path) -> Path:
    model = uneven_model("bert")
    for name in (LAYER, "classifier"):
        model.set_submodule(name, Int8Linear.of(model.get_submodule(name)))
    save_compressed(model, tmp_path)
    return tmp_path


def test_int8_without_its_record_is_not_made_up(int8: Path) -> None:
    path = int8 / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    for kind in (AutoModelForText, BertModel):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            kind.from_pretrained(int8)


def test_int8_of_an_earlier_version_still_loads(int8: Path) -> None:
    ids = torch.arange(5, 12)[None]
    expected = AutoModelForText.from_pretrained(int8)(ids).logits

    def former(tensors: dict[str, torch.Tensor]) -> None:
        for name in (LAYER, "classifier"):
            rows = len(tensors[f"{name}.weight_scale"])
            tensors[f"{name}.weight_int8"] = tensors.pop(f"{name}.weight").view(rows, -1)

    change_tensors(int8, former)
    change_record(int8, lambda record: record.pop("digests"))
    model = AutoModelForText.from_pretrained(int8)
    assert torch.equal(model(ids).logits, expected)
    model.save_pretrained(int8)
    assert f"{LAYER}.weight" in load_file(int8 / "model.safetensors")
