from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2Model
from transformers.pytorch_utils import Conv1D

from hfcompress.calibration.moments import weight_of
from hfcompress.errors import TargetError
from hfcompress.models.sublayers import sublayers
from hfcompress.models.surgery import (
    keep_features,
    keep_inputs,
    keep_layers,
    keep_outputs,
    keep_rows,
    keep_units,
    resized,
)
from tests.tiny_models import SHRINKABLE, logits, shrinkable_batches, shrinkable_model

KEEP = {"heads": [3, 0], "neurons": [5, 2, 40, 7]}


def linears() -> list[nn.Linear | Conv1D]:
    return [nn.Linear(6, 5), Conv1D(5, 6)]  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("module", linears(), ids=lambda module: type(module).__name__)
def test_outputs_and_inputs(module: nn.Linear | Conv1D) -> None:
    x = torch.randn(3, 6)
    nn.init.normal_(module.bias)
    before = module(x)
    keep_outputs(module, [4, 1])
    torch.testing.assert_close(module(x), before[:, [4, 1]])
    x[:, [0, 3]] = 0
    wanted = module(x)
    keep_inputs(module, [1, 2, 4, 5])
    torch.testing.assert_close(module(x[:, [1, 2, 4, 5]]), wanted)
    sizes = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (4, 2)
    assert sizes == (4, 2)


def test_features_and_rows() -> None:
    norm, table = nn.LayerNorm(4), nn.Embedding(5, 4, padding_idx=3)
    keep_features(norm, [0, 2])
    assert norm(torch.randn(2, 2)).shape == (2, 2)
    weight = table.weight.detach().clone()
    keep_features(table, [1, 0])
    keep_rows(table, [3, 4])
    assert torch.equal(table.weight, weight[[3, 4]][:, [1, 0]])
    assert (table.num_embeddings, table.embedding_dim, table.padding_idx) == (2, 2, 0)
    keep_rows(table, [1])
    assert table.padding_idx is None


def test_other_modules_are_refused() -> None:
    with pytest.raises(TargetError, match="cannot cut a Conv2d"):
        keep_outputs(nn.Conv2d(1, 1, 1), [0])
    with pytest.raises(TargetError, match="Linear has no features"):
        keep_features(nn.Linear(2, 2), [0])


def test_an_optimizer_trains_on_and_ties_hold() -> None:
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 20}
    model: Any = BertForMaskedLM(BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    table, decoder = model.get_input_embeddings(), model.get_output_embeddings()
    keep_rows(table, range(10))
    resized(decoder)
    keep_units(model, sublayers(model)[1], [1, 3])
    assert decoder.weight is table.weight
    assert decoder.out_features == 10
    intermediate = model.bert.encoder.layer[0].intermediate.dense
    before = intermediate.weight.detach().clone()
    model.bert(torch.tensor([[1, 2, 3]])).last_hidden_state[:, 0, 0].sum().backward()
    optimizer.step()
    assert intermediate.weight.shape == (2, 8)
    assert not torch.equal(intermediate.weight, before)


@pytest.mark.parametrize("model_type", SHRINKABLE)
def test_kept_units_compute_what_they_did(model_type: str) -> None:
    """The cut model is the model whose other units put out zero, in any order of the kept."""
    model, (batch, *_) = shrinkable_model(model_type), shrinkable_batches(model_type)
    masked = copy.deepcopy(model)
    for part in sublayers(model):
        gone = torch.ones(part.units(model) * part.size, dtype=torch.bool)
        gone[part.columns(torch.tensor(KEEP[part.kind]))] = False
        weight_of(part.out(masked)).data[:, gone] = 0
        keep_units(model, part, KEEP[part.kind])
        assert part.units(model) == len(KEEP[part.kind])
    assert logits(model, batch).sub(logits(masked, batch)).abs().max() < 1e-5
    assert logits(model, batch).sub(logits(shrinkable_model(model_type), batch)).abs().max() > 1e-2


@pytest.mark.parametrize("model_type", SHRINKABLE)
@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_sublayer_without_units_is_its_bias(model_type: str, kind: str, attention: str) -> None:
    model, (batch, *_) = shrinkable_model(model_type), shrinkable_batches(model_type)
    model.set_attn_implementation(attention)
    masked = copy.deepcopy(model)
    part = next(part for part in sublayers(model) if part.kind == kind)
    weight_of(part.out(masked)).data.zero_()
    keep_units(model, part, [])
    torch.testing.assert_close(logits(model, batch), logits(masked, batch))
    model(**batch).loss.backward()


def test_a_family_with_fixed_heads_is_refused() -> None:
    model = GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=10))
    heads, neurons = sublayers(model)
    with pytest.raises(TargetError, match="fixes the number of heads"):
        keep_units(model, heads, [0])
    keep_units(model, neurons, [0, 1])
    model(torch.tensor([[1, 2]]))


def test_an_unknown_family_is_answered_with_the_known() -> None:
    with pytest.raises(TargetError, match=r"'Linear' are is not known; .*bert, .*vit"):
        sublayers(nn.Linear(2, 2))


@pytest.mark.parametrize("model_type", SHRINKABLE)
def test_layers(model_type: str) -> None:
    model, (batch, *_) = shrinkable_model(model_type), shrinkable_batches(model_type)
    keep_layers(model, [0, 2])
    assert model.config.num_hidden_layers == 2
    assert len(sublayers(model)) == 4
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(fresh.eval(), batch), logits(model, batch))


def test_layers_that_cannot_be_kept() -> None:
    with pytest.raises(TargetError, match="count from 0"):
        keep_layers(shrinkable_model("bert"), [3])
    with pytest.raises(TargetError, match="keep at least one"):
        keep_layers(shrinkable_model("bert"), [])
    with pytest.raises(TargetError, match="must stay the first"):
        keep_layers(shrinkable_model("modernbert"), [1])
