"""Bitmask and values: bit for bit, and as small as the arithmetic says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageClassification as AutoModelForImages
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)
from transformers import AutoModelForSequenceClassification as AutoModelForText
from transformers.quantizers import auto

import hfcompress
from hfcompress import PruningConfig, prune
from hfcompress.checkpoint.packing import pack, packed_bytes, unpack
from hfcompress.checkpoint.record import METHOD
from hfcompress.checkpoint.save import save_compressed
from hfcompress.errors import ModelError, OutputError
from tests.tiny_models import logits, shrinkable_batches, shrinkable_model, uneven_model


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def without_digests(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]["digests"]
    path.write_text(json.dumps(config))


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=60, deadline=None)
def test_unpacking_undoes_packing(
    shape: list[int], density: float, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    weight = (weight * (torch.rand(shape, generator=generator) < density)).to(dtype)
    bitmask, values = pack(weight)
    assert torch.equal(unpack(bitmask, values, shape), weight)
    assert bitmask.nbytes + values.nbytes == packed_bytes(weight, len(values))
    # numpy's own packing, element 0 in the lowest bit.
    bits = np.packbits(weight.flatten().float().numpy() != 0, bitorder="little")
    assert np.array_equal(bitmask.numpy(), bits)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    bitmask, values = pack(torch.tensor([1.0, 0.0, 2.0]))
    for wrong in ((bitmask, values[:1], [3]), (bitmask, values, [9])):
        with pytest.raises(ModelError, match="bits set and"):
            unpack(*wrong)


def test_a_model_at_90_percent_takes_at_most_17_percent(tmp_path: Path) -> None:
    model = shrinkable_model("bert")
    report = prune(model, PruningConfig(sparsity=0.9, scope="global"))
    names = [layer["name"] for layer in report.to_dict()["layers"]]
    saved = save_compressed(model, tmp_path / "sparse", sparse=True)
    save_compressed(model, tmp_path / "dense")
    packed, dense = stored(tmp_path / "sparse"), stored(tmp_path / "dense")
    before = sum(dense[f"{name}.weight"].nbytes for name in names)
    after = sum(
        packed[f"{name}.weight"].nbytes + packed[f"{name}.weight_values"].nbytes for name in names
    )
    assert after <= 0.17 * before
    assert (saved.packed, saved.dense_bytes, saved.bytes) == (len(names), before, after)
    again = AutoModelForText.from_pretrained(tmp_path / "sparse")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.state_dict().keys() == model.state_dict().keys()
    batch = shrinkable_batches("bert")[0]
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert isinstance(again.bert.encoder.layer[0].output.dense.weight, nn.Parameter)
    assert again.bert.encoder.layer[0].output.dense.weight.requires_grad


def test_in_memory_it_is_dense_and_a_later_save_is_plain(tmp_path: Path) -> None:
    model = shrinkable_model("bert")
    prune(model, PruningConfig(sparsity=0.9))
    save_compressed(model, tmp_path / "sparse", sparse=True)
    assert not hasattr(model.config, "quantization_config")
    again = AutoModelForText.from_pretrained(tmp_path / "sparse")
    again.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    assert not any("values" in name for name in stored(tmp_path / "dense"))


def test_shrunk_and_sparse_at_once(tmp_path: Path) -> None:
    model = uneven_model("bert")
    prune(model, PruningConfig(sparsity=0.8))
    save_compressed(model, tmp_path, sparse=True)
    again = AutoModelForText.from_pretrained(tmp_path)
    batch = shrinkable_batches("bert")[0]
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert again.config.quantization_config == model.config.quantization_config


def test_convolutions_are_packed_and_what_would_grow_is_not(tmp_path: Path) -> None:
    model = shrinkable_model("vit")
    convolution = model.vit.embeddings.patch_embeddings.projection
    with torch.no_grad():
        convolution.weight[:, :2] = 0
    save_compressed(model, tmp_path, sparse=True)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        packed = {name for name in file.keys() if "values" in name}  # noqa: SIM118
    assert packed == {"vit.embeddings.patch_embeddings.projection.weight_values"}
    again = AutoModelForImages.from_pretrained(tmp_path)
    assert torch.equal(again.vit.embeddings.patch_embeddings.projection.weight, convolution.weight)


def test_a_shared_weight_stays_dense(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.cls.predictions.decoder.weight.mul_(torch.rand(40, 32) < 0.1)
    assert save_compressed(model, tmp_path, sparse=True).packed == 0
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight


def test_the_folder_says_how_to_load_it(tmp_path: Path) -> None:
    save_compressed(uneven_model("bert"), tmp_path / "uneven")
    assert "import hfcompress" in (tmp_path / "uneven" / "README.md").read_text()
    save_compressed(shrinkable_model("bert"), tmp_path / "plain")
    assert "import hfcompress" not in (tmp_path / "plain" / "README.md").read_text()
    (tmp_path / "uneven" / "README.md").write_text("mine")
    save_compressed(uneven_model("bert"), tmp_path / "uneven")
    assert (tmp_path / "uneven" / "README.md").read_text() == "mine"


def test_nothing_is_left_beside_the_folder(tmp_path: Path) -> None:
    save_compressed(shrinkable_model("bert"), tmp_path / "deep" / "model")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_compressed(shrinkable_model("bert"), tmp_path / "file")


def break_record(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"]["packed"])
    path.write_text(json.dumps(config))


LAYER = "bert.encoder.layer.0.output.dense"


def test_damaged_packed_checkpoints_are_refused(tmp_path: Path) -> None:
    model = shrinkable_model("bert")
    prune(model, PruningConfig(sparsity=0.9))
    save_compressed(model, tmp_path, sparse=True)
    without_digests(tmp_path)
    tensors = stored(tmp_path)
    wrong = {**tensors, f"{LAYER}.weight": tensors[f"{LAYER}.weight"] * 0}
    save_file(wrong, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="0 bits set and"):
        AutoModelForText.from_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    AutoModelForText.from_pretrained(tmp_path)
    break_record(tmp_path, lambda packed: packed.update({LAYER: 7}))
    with pytest.raises(ModelError, match=r"weight_values' has the shape .* records \[7\]"):
        AutoModelForText.from_pretrained(tmp_path)
    break_record(tmp_path, lambda packed: packed.update({"bert.embeddings.LayerNorm": 7}))
    with pytest.raises(ModelError, match="is a LayerNorm in this model, not a Linear or"):
        AutoModelForText.from_pretrained(tmp_path)


def test_without_hfcompress_nothing_is_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that does not know packed weights must fail, not draw new ones."""
    model = shrinkable_model("bert")
    prune(model, PruningConfig(sparsity=0.9))
    save_compressed(model, tmp_path, sparse=True)
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, METHOD)
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, METHOD)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForText.from_pretrained(tmp_path)


def test_it_is_public() -> None:
    assert hfcompress.save_compressed is save_compressed


def test_an_encoder_alone_loads_from_an_encoder_and_decoder(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
    }  # fmt: skip
    model = T5ForConditionalGeneration(T5Config(**sizes))
    prune(model, PruningConfig(sparsity=0.9))
    save_compressed(model, tmp_path, sparse=True)
    loaded = T5EncoderModel.from_pretrained(tmp_path)
    for name, value in loaded.encoder.state_dict().items():
        assert torch.equal(value, model.encoder.state_dict()[name])
