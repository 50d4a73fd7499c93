from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from hfcompress.errors import ConfigError, TargetError
from hfcompress.measure.size import (
    CompressionMetrics,
    calculate_model_size,
    calculate_sparsity,
    count_parameters,
)

TINY: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}


@pytest.fixture
def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**TINY))


def tiny_gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=1, n_head=2))


def tiny_resnet() -> ResNetForImageClassification:
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    )


def by_hand(hidden: int, inner: int, layers: int, vocabulary: int, positions: int) -> int:
    embeddings = (vocabulary + positions + 2) * hidden + 2 * hidden
    attention = 4 * (hidden * hidden + hidden) + 2 * hidden
    feed_forward = 2 * hidden * inner + inner + hidden + 2 * hidden
    pooler_and_head = hidden * hidden + hidden + 2 * hidden + 2
    return embeddings + layers * (attention + feed_forward) + pooler_and_head


def test_parameters_equal_the_formula_of_bert(bert: BertForSequenceClassification) -> None:
    assert count_parameters(bert) == by_hand(32, 64, 2, 50, 16)


def test_distilbert_has_the_known_parameters_without_any_weights() -> None:
    with torch.device("meta"):
        model = DistilBertForSequenceClassification(DistilBertConfig())
    assert count_parameters(model) == 66_955_010
    linears = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)]
    # L1 at 30 % of every Linear, rounded per layer as torch.nn.utils.prune does.
    assert 66_955_010 - sum(round(0.3 * weights) for weights in linears) == 54_037_406
    assert calculate_model_size(model) - 4 * 66_955_010 < 16_384


def test_zeros_and_frozen_parameters_are_left_out_on_demand() -> None:
    layer = nn.Linear(4, 3)
    nn.init.ones_(layer.bias)
    with torch.no_grad():
        layer.weight.fill_(1.0)[0, :2] = 0.0
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 15
    assert count_parameters(layer, nonzero=True) == 13
    assert count_parameters(layer, trainable_only=True) == 12
    assert count_parameters(layer, nonzero=True, trainable_only=True) == 10


def test_tied_weights_count_once() -> None:
    tied = BertForMaskedLM(BertConfig(**TINY))
    untied = BertForMaskedLM(BertConfig(**TINY, tie_word_embeddings=False))
    # Untied, the decoder has its own 50 x 32 weight and its own bias.
    assert count_parameters(untied) - count_parameters(tied) == 50 * 32 + 50


@pytest.mark.parametrize("build", ["bert", "tied", "gpt2", "resnet"])
def test_fp32_size_is_what_save_pretrained_writes(build: str, tmp_path: Path) -> None:
    model = {
        "bert": lambda: BertForSequenceClassification(BertConfig(**TINY)),
        "tied": lambda: BertForMaskedLM(BertConfig(**TINY)),
        "gpt2": tiny_gpt2,
        "resnet": tiny_resnet,  # batch norm has buffers, and integer ones
    }[build]()
    model.save_pretrained(tmp_path)
    assert calculate_model_size(model) == (tmp_path / "model.safetensors").stat().st_size


def test_fp16_size_is_what_the_halved_model_writes(
    bert: BertForSequenceClassification, tmp_path: Path
) -> None:
    predicted = calculate_model_size(bert, "fp16")
    for parameter in bert.parameters():
        parameter.data = parameter.data.half()
    bert.save_pretrained(tmp_path)
    assert predicted == (tmp_path / "model.safetensors").stat().st_size


def test_int8_size_quantizes_linears_and_nothing_else() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4), nn.Conv2d(4, 4, 3))
    saved = calculate_model_size(model) - calculate_model_size(model, "int8")
    header = len('"1.weight_scale":{"dtype":"F32","shape":[4],"data_offsets":[000,000]},')
    # 8 x 4 weights lose three of four bytes and four scales of four bytes come on top.
    assert saved == pytest.approx(3 * 8 * 4 - 4 * 4 - header, abs=16)


def test_int8_size_keeps_a_linear_that_is_tied_to_an_embedding() -> None:
    model = BertForMaskedLM(BertConfig(**TINY))
    decoder = 50 * 32
    linears = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)) - decoder
    saved = calculate_model_size(model) - calculate_model_size(model, "int8")
    assert saved <= 3 * linears


def test_int8_scales_of_conv1d_go_by_its_outputs() -> None:
    # Conv1D stores inputs x outputs: c_attn is 16 x 48, so 48 scales, not 16.
    model = tiny_gpt2()
    saved = calculate_model_size(model) - calculate_model_size(model, "int8")
    weights = 16 * 48 + 16 * 16 + 16 * 64 + 64 * 16
    scales = 4 * (48 + 16 + 64 + 16)
    assert 3 * weights - scales - 4 * 120 < saved < 3 * weights - scales


def test_an_unknown_dtype_is_refused(bert: BertForSequenceClassification) -> None:
    with pytest.raises(ConfigError, match="fp32, fp16, int8"):
        calculate_model_size(bert, "int4")  # type: ignore[arg-type]


def test_sparsity_of_model_targets_and_layers() -> None:
    first = nn.Linear(10, 10)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(10, 4))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    with torch.no_grad():
        first.weight[:5] = 0.0
    sparsity = calculate_sparsity(model)
    assert sparsity.layer("0").sparsity == 0.5
    assert (sparsity.layer("2").weights, sparsity.layer("2").zeros) == (40, 0)
    assert sparsity.targets == 50 / 140
    assert sparsity.model == 50 / 154
    only = calculate_sparsity(model, targets=["2"])
    assert (only.targets, only.model) == (0.0, sparsity.model)
    assert [layer.name for layer in only.layers] == ["2"]


def test_embeddings_are_targets_only_by_name(bert: BertForSequenceClassification) -> None:
    name = "bert.embeddings.word_embeddings"
    assert name not in [layer.name for layer in calculate_sparsity(bert).layers]
    # The padding row is zero from the start.
    assert calculate_sparsity(bert, [name]).layer(name).zeros == 32


def test_a_missing_target_is_named_with_the_nearest(bert: BertForSequenceClassification) -> None:
    with pytest.raises(TargetError, match="did you mean 'classifier'"):
        calculate_sparsity(bert, ["clasifier"])
    with pytest.raises(TargetError, match="has no weight"):
        calculate_sparsity(bert, ["bert.encoder"])
    with pytest.raises(ConfigError, match="did you mean 'classifier'"):
        calculate_sparsity(bert).layer("clasifier")


def test_metrics_gather_everything_as_json(bert: BertForSequenceClassification) -> None:
    inputs = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    dense = CompressionMetrics(bert, inputs=inputs)
    name = "bert.encoder.layer.0.intermediate.dense"
    with torch.no_grad():
        bert.get_parameter(f"{name}.weight")[:32] = 0.0
    pruned = CompressionMetrics(bert, targets=[name])
    plain = json.loads(json.dumps(pruned.to_dict()))
    assert plain["actual_sparsity"] == 0.5
    assert plain["layers"][0]["zeros"] == 32 * 32
    assert plain["nonzero_parameters"] == dense.nonzero_parameters - 32 * 32
    assert plain["weights"]["zeros"] == 32 * 32
    assert plain["macs"] is None
    assert dense.to_dict()["macs"] > 0


def test_compare_says_how_many_times_smaller() -> None:
    inputs = {"input": torch.ones(2, 8)}
    wide, narrow = nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)
    ratio = CompressionMetrics(narrow, inputs=inputs).compare(
        CompressionMetrics(wide, inputs=inputs)
    )
    assert (ratio.parameters, ratio.nonzero_parameters, ratio.macs) == (2.0, 2.0, 2.0)
    assert 1.0 < ratio.bytes < 2.0
    assert CompressionMetrics(narrow).compare(CompressionMetrics(wide)).macs is None


def test_a_model_without_layers_has_no_weights_to_describe() -> None:
    plain = CompressionMetrics(nn.LayerNorm(4)).to_dict()
    assert (plain["weights"], plain["actual_sparsity"], plain["parameters"]) == (None, 0.0, 8)
