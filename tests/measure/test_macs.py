from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from hfcompress.errors import ModelError
from hfcompress.measure.macs import count_macs
from tests.tiny_models import text_model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert_equals_the_formula(attention: str) -> None:
    batch, tokens, hidden, inner = 3, 7, 32, 64
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=inner,
        )
    )
    model.set_attn_implementation(attention)
    ids = torch.ones(batch, tokens, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    found = count_macs(model, {"input_ids": ids, "attention_mask": mask})
    products = 2 * tokens * tokens * hidden
    layer = 4 * tokens * hidden * hidden + products + 2 * tokens * hidden * inner
    assert found.total == batch * (2 * layer + hidden * hidden + 2 * hidden)
    assert found.modules["bert.encoder.layer.0"] == batch * layer
    assert found.modules["classifier"] == batch * 2 * hidden


def test_conv1d_of_gpt2_is_counted() -> None:
    tokens, hidden = 5, 16
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=8, n_embd=hidden, n_layer=1, n_head=2)
    )
    found = count_macs(model, {"input_ids": torch.ones(1, tokens, dtype=torch.long)})
    assert found.modules["transformer.h.0.attn.c_attn"] == tokens * hidden * 3 * hidden
    assert found.modules["transformer.h.0.mlp.c_fc"] == tokens * hidden * 4 * hidden


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 1), (4, 2)])
def test_grouped_convolution_equals_the_formula(groups: int, stride: int) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=groups, stride=stride))
    found = count_macs(model, {"input": torch.zeros(2, 4, 10, 10)})
    assert found.total == 2 * (10 // stride) ** 2 * 8 * (4 // groups) * 9
    assert found.modules == {"0": found.total}


@pytest.mark.parametrize("both_ways", [False, True])
def test_lstm_equals_the_formula(both_ways: bool) -> None:
    model = nn.Sequential(nn.LSTM(8, 16, batch_first=True, bidirectional=both_ways))
    found = count_macs(model, {"input": torch.zeros(2, 5, 8)})
    assert found.total == (2 if both_ways else 1) * 2 * 5 * 4 * 16 * (8 + 16)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    model.train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, {"input": torch.ones(1, 1, 5, 5)})
    assert [module.training for module in model] == [True, True, False]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_inputs_that_do_not_fit_are_named() -> None:
    model = nn.Linear(3, 2).train()
    with pytest.raises(ModelError, match=r"Linear cannot be run on the inputs \['input'\]"):
        count_macs(model, {"input": torch.zeros(1, 4)})
    assert model.training


def test_a_model_that_hands_parameters_to_its_modules() -> None:
    model = text_model("deberta-v2")  # its relative positions are a parameter that a norm reads
    ids = torch.ones(2, 5, dtype=torch.long)
    assert count_macs(model, {"input_ids": ids}).modules["classifier"] == 2 * 32 * 3
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_of_torch_transformers_are_counted_in_eval_mode() -> None:
    """Their fused kernel is one operator that no counter knows."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    tokens = 5
    linear = tokens * (16 * 48 + 16 * 16 + 2 * 16 * 32)
    products = 2 * tokens * tokens * 16
    assert count_macs(layer, {"src": torch.randn(1, tokens, 16)}).total == linear + products
    assert torch.backends.mha.get_fastpath_enabled()
