"""What a shrunk model's config says, and that the same process loads it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import hfcompress
from hfcompress.checkpoint.record import METHOD
from hfcompress.checkpoint.save import record_shapes
from hfcompress.errors import ModelError
from hfcompress.models.sublayers import sublayers
from hfcompress.models.surgery import keep_layers, keep_rows, keep_units
from tests.tiny_models import (
    SHRINKABLE,
    SHRINKABLE_IMAGES,
    SHRINKABLE_TEXTS,
    auto_class_of_shrinkable,
    logits,
    shrinkable_batches,
    shrinkable_model,
    uneven_model,
)


def load(model_type: str, folder: Path, **options: Any) -> Any:
    return getattr(transformers, auto_class_of_shrinkable(model_type)).from_pretrained(
        folder, **options
    )


def saved_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("model_type", SHRINKABLE)
def test_uneven_widths_come_back_bit_for_bit(model_type: str, tmp_path: Path) -> None:
    model = uneven_model(model_type)
    model.save_pretrained(tmp_path)
    again, info = load(model_type, tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    batch = shrinkable_batches(model_type)[0]
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize("model_type", SHRINKABLE)
def test_sublayers_without_any_unit_come_back(model_type: str, tmp_path: Path) -> None:
    model = shrinkable_model(model_type)
    _, neurons, heads, *_ = sublayers(model)
    keep_units(model, neurons, [])
    keep_units(model, heads, [])
    record_shapes(model)
    model.save_pretrained(tmp_path)
    batch = shrinkable_batches(model_type)[0]
    assert torch.equal(logits(load(model_type, tmp_path), batch), logits(model, batch))


def test_several_files_come_back(tmp_path: Path) -> None:
    model = uneven_model("bert")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    batch = shrinkable_batches("bert")[0]
    assert torch.equal(logits(load("bert", tmp_path), batch), logits(model, batch))


@pytest.mark.parametrize("model_type", SHRINKABLE)
def test_one_width_for_all_layers_stays_plain(model_type: str, tmp_path: Path) -> None:
    model = shrinkable_model(model_type)
    for sublayer in sublayers(model)[1::2]:
        keep_units(model, sublayer, list(range(16)))
    keep_layers(model, [0, 2])
    assert not record_shapes(model)
    model.save_pretrained(tmp_path)
    config = saved_config(tmp_path)
    assert "quantization_config" not in config
    width = "hidden_dim" if model_type == "distilbert" else "intermediate_size"
    assert config[width] == 16
    batch = shrinkable_batches(model_type)[0]
    assert torch.equal(logits(load(model_type, tmp_path), batch), logits(model, batch))


def test_fewer_tokens_stay_plain(tmp_path: Path) -> None:
    model = shrinkable_model("bert")
    keep_rows(model.bert.embeddings.word_embeddings, list(range(20)))
    assert not record_shapes(model)
    assert model.config.vocab_size == 20


def test_an_unchanged_model_is_left_as_it_is() -> None:
    model = shrinkable_model("bert")
    before = model.config.to_dict()
    assert not record_shapes(model)
    assert model.config.to_dict() == before


def test_the_record_goes_when_there_is_nothing_to_say_any_more() -> None:
    model = uneven_model("bert")
    assert model.config.quantization_config["quant_method"] == METHOD
    model.bert.encoder = shrinkable_model("bert").bert.encoder
    model.config.intermediate_size = 48
    assert not record_shapes(model)
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize("model_type", [*SHRINKABLE_TEXTS[:2], *SHRINKABLE_IMAGES])
def test_the_base_model_alone_loads_from_the_whole_and_back(
    model_type: str, tmp_path: Path
) -> None:
    model = uneven_model(model_type)
    model.save_pretrained(tmp_path / "whole")
    base = transformers.AutoModel.from_pretrained(tmp_path / "whole")
    base.save_pretrained(tmp_path / "base")
    again = load(model_type, tmp_path / "base")
    for name, tensor in getattr(model, model.base_model_prefix).state_dict().items():
        assert torch.equal(getattr(again, again.base_model_prefix).state_dict()[name], tensor), name


def test_a_loaded_model_is_saved_again_alike(tmp_path: Path) -> None:
    uneven_model("bert").save_pretrained(tmp_path / "first")
    load("bert", tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = saved_config(tmp_path / "first"), saved_config(tmp_path / "second")
    assert first["quantization_config"] == second["quantization_config"]
    weights = "model.safetensors"
    assert (tmp_path / "first" / weights).read_bytes() == (
        tmp_path / "second" / weights
    ).read_bytes()


def test_a_loaded_model_is_no_quantized_one(tmp_path: Path) -> None:
    uneven_model("bert").save_pretrained(tmp_path)
    model = load("bert", tmp_path)
    assert not getattr(model, "is_quantized", False)
    assert model.half().dtype == torch.float16
    assert model.float().dtype == torch.float32
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    assert load("bert", tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_changed_head_is_asked_of_its_own_class_only(tmp_path: Path) -> None:
    model = shrinkable_model("bert")
    model.classifier = nn.Linear(32, 3, bias=False)
    record = record_shapes(model)
    assert record.modules == {"classifier": {"bias": None}}
    model.save_pretrained(tmp_path)
    assert load("bert", tmp_path).classifier.bias is None
    assert transformers.AutoModel.from_pretrained(tmp_path).config.hidden_size == 32


def test_a_bias_that_surgery_added_comes_back(tmp_path: Path) -> None:
    model = shrinkable_model("modernbert")
    layer = model.model.layers[1].mlp.Wo
    assert layer.bias is None
    layer.bias = nn.Parameter(torch.ones(32))
    assert record_shapes(model).modules == {"model.layers.1.mlp.Wo": {"bias": (32,)}}
    model.save_pretrained(tmp_path)
    again = load("modernbert", tmp_path)
    assert torch.equal(again.model.layers[1].mlp.Wo.bias, torch.ones(32))


def test_other_modules_than_the_config_builds_are_refused() -> None:
    model = shrinkable_model("bert")
    model.bert.encoder.layer[0].extra = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"layer\.0\.extra'.*does not build"):
        record_shapes(model)
    model = shrinkable_model("vit")
    model.vit.embeddings.position_embeddings = nn.Parameter(torch.zeros(1, 9, 32))
    with pytest.raises(ModelError, match=r"'vit.embeddings'.*ViTEmbeddings whose shapes"):
        record_shapes(model)


def test_a_model_that_another_library_quantized_is_refused() -> None:
    model = shrinkable_model("bert")
    model.config.quantization_config = {"quant_method": "torchao"}
    with pytest.raises(ModelError, match=r"is quantized \(torchao\)"):
        record_shapes(model)


def test_it_is_public() -> None:
    assert hfcompress.record_shapes is record_shapes
