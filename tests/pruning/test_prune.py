"""prune(): exact zeros, exact counts, the same weights as torch.nn.utils.prune."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from hfcompress.errors import ConfigError, ModelError, TargetError
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.keep_zeros import keep_zeros, masks_of_zeros
from hfcompress.pruning.prune import prune


def tiny_bert(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=60,
    )
    return BertForSequenceClassification(config)


# torch.nn.utils.prune has no types.
l1_unstructured: Any = torch_prune.l1_unstructured
global_unstructured: Any = torch_prune.global_unstructured


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_published_arithmetic_of_distilbert() -> None:
    """30 % of every Linear: 66,955,010 parameters, 54,037,406 of them not zero, 19.29 %."""
    with torch.device("meta"):
        model = DistilBertForSequenceClassification(DistilBertConfig())  # two labels
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():  # nothing is zero before pruning
        torch.arange(1, parameter.numel() + 1, out=parameter.data.view(-1))
    report = prune(model, PruningConfig(sparsity=0.3, targets=("Linear",)))
    total = sum(parameter.numel() for parameter in model.parameters())
    alive = sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
    assert len(report.layers) == 38
    assert (total, alive) == (66_955_010, 54_037_406)
    assert round(100 * (1 - alive / total), 2) == 19.29
    assert report.zeros == total - alive


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.83])
def test_layer_scope_keeps_what_torch_keeps(sparsity: float) -> None:
    ours, theirs = tiny_bert(), tiny_bert()
    prune(ours, PruningConfig(sparsity=sparsity, targets=("Linear",)))
    for module in linears(theirs):
        l1_unstructured(module, "weight", sparsity)
    for mine, other in zip(linears(ours), linears(theirs), strict=True):
        assert torch.equal(mine.weight, other.weight)


def test_global_scope_keeps_what_torch_keeps() -> None:
    ours, theirs = tiny_bert(), tiny_bert()
    prune(ours, PruningConfig(sparsity=0.6, scope="global", targets=("Linear",)))
    global_unstructured(
        [(module, "weight") for module in linears(theirs)],
        pruning_method=torch_prune.L1Unstructured,
        amount=0.6,
    )
    for mine, other in zip(linears(ours), linears(theirs), strict=True):
        assert torch.equal(mine.weight, other.weight)


def test_weights_of_several_dtypes_or_strides_have_one_threshold() -> None:
    mixed, plain = tiny_bert(), tiny_bert()
    for module in linears(mixed)[::2]:
        module.to(torch.float64)
    for module in linears(mixed)[1::2]:
        module.weight.data = module.weight.data.t().contiguous().t()
    config = PruningConfig(sparsity=0.6, scope="global", targets=("Linear",))
    assert prune(mixed, config).zeros == prune(plain, config).zeros
    for mine, other in zip(linears(mixed), linears(plain), strict=True):
        assert torch.equal(mine.weight.float(), other.weight)


def test_the_report_counts() -> None:
    model = tiny_bert()
    report = prune(model, PruningConfig(sparsity=0.37))
    for layer in report.layers:
        weight = model.get_submodule(layer.name).weight
        assert layer.zeros == layer.requested == round(0.37 * weight.numel())
        assert int((weight == 0).sum()) == layer.zeros
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["zeros"] == sum(layer["zeros"] for layer in plain["layers"])
    assert plain["actual"] == report.actual == report.zeros / report.weights
    assert plain["requested"] == 0.37


def test_pruning_again_goes_on_from_the_zeros_that_are_there() -> None:
    twice, once = tiny_bert(), tiny_bert()
    prune(twice, PruningConfig(sparsity=0.3))
    prune(twice, PruningConfig(sparsity=0.6))
    prune(once, PruningConfig(sparsity=0.6))
    for mine, other in zip(linears(twice), linears(once), strict=True):
        assert torch.equal(mine.weight, other.weight)


def test_targets_and_exclude_change_what_is_pruned() -> None:
    model = tiny_bert()
    report = prune(model, PruningConfig(sparsity=0.5, targets=("*.attention.*",), exclude=("key",)))
    assert len(report.layers) == 6
    assert {layer.name.rpartition(".")[2] for layer in report.layers} == {"query", "value", "dense"}


def test_sparsity_zero_changes_nothing() -> None:
    model, before = tiny_bert(), tiny_bert()
    assert prune(model, PruningConfig(sparsity=0)).zeros == 0
    for mine, other in zip(linears(model), linears(before), strict=True):
        assert torch.equal(mine.weight, other.weight)


def test_nan_in_a_weight_names_the_layer() -> None:
    model = tiny_bert()
    model.bert.encoder.layer[1].output.dense.weight.data[3, 2] = float("nan")
    with pytest.raises(ModelError, match=r"layer\.1\.output\.dense\.weight contains NaN"):
        prune(model, PruningConfig(sparsity=0.5))


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
def test_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigError, match="sparsity"):
        PruningConfig(sparsity=sparsity)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(TargetError, match="queri"):
        prune(tiny_bert(), PruningConfig(sparsity=0.5, targets=("queri",)))


class Tagger(nn.Module):
    """A table whose first row is padding, and the layers that read it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 8, padding_idx=0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.last(self.first(self.table(ids).mean(1)).relu())
        return found


def test_rows_of_a_table_are_pruned_where_it_is_named() -> None:
    model = Tagger()
    before = model.table.weight.detach().clone()
    config = PruningConfig(targets=("table",), sparsity=0.5, pattern="1x8")
    (layer,) = prune(model, config).layers
    assert (layer.name, layer.zeros) == ("table", 80)
    gone = (model.table.weight == 0).all(1)
    assert gone.sum() == 10
    assert gone[0]
    assert before[gone].abs().sum(1).max() <= before[~gone].abs().sum(1).min()
    assert torch.equal(model.table.weight[~gone], before[~gone])


@pytest.mark.parametrize("targets", [None, ("*",), ("Linear", "last")])
def test_a_table_stays_dense_where_patterns_name_matrices(targets: tuple[str, ...] | None) -> None:
    model = Tagger()
    prune(model, PruningConfig(targets=targets, sparsity=0.5))
    assert int((model.table.weight == 0).sum()) == 8


def test_gradients_prune_a_table_and_inputs_do_not() -> None:
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randint(1, 20, (8, 5), generator=draw), torch.arange(8) % 3)]
    model = Tagger()
    prune(model, PruningConfig(method="taylor", targets=("Embedding",), sparsity=0.5), batches)
    assert int((model.table.weight == 0).sum()) == 80
    config = PruningConfig(method="wanda", targets=("table", "first"), sparsity=0.5)
    model = Tagger()
    report = prune(model, config, batches)
    assert [layer.name for layer in report.layers] == ["first"]
    assert any("method magnitude prunes it" in note for note in report.notes)


def test_zeros_of_a_table_are_kept_while_it_trains() -> None:
    model = Tagger()
    prune(model, PruningConfig(targets=("table",), sparsity=0.5))
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    with keep_zeros(model, optimizer):
        model(torch.arange(20)[None]).sum().backward()
        optimizer.step()
    assert int((model.table.weight == 0).sum()) == 80


def test_a_padding_row_is_no_zero_to_keep() -> None:
    model = Tagger()
    with pytest.raises(TargetError, match="has zeros to keep; prune it first"):
        masks_of_zeros(model)
