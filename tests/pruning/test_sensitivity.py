"""One layer at a time, and everything back in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.moments import weight_of
from hfcompress.models.architectures import default_targets
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.sensitivity import sensitivity
from tests.tiny_models import lively_bert, sentence_batches


def nonzero(model: nn.Module) -> float:
    return float(sum(int((p != 0).sum()) for p in model.parameters()))


def test_each_layer_is_pruned_alone() -> None:
    model = lively_bert()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = sensitivity(model, PruningConfig(sparsity=0.1), nonzero, (0.25, 0.5))
    targets = default_targets(model)
    assert [row.layer for row in rows[::2]] == list(targets)
    for row in rows:
        assert row.drop == round(row.requested * weight_of(targets[row.layer]).numel())
        assert row.actual == row.requested
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_failure_puts_the_weights_back() -> None:
    model = lively_bert()
    before = nonzero(model)
    calls = 0

    def fails_later(net: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RuntimeError("no measure")
        return 0.0

    with pytest.raises(RuntimeError, match="no measure"):
        sensitivity(model, PruningConfig(sparsity=0.5), fails_later)
    assert nonzero(model) == before


def test_calibration_is_passed_on() -> None:
    config = PruningConfig(method="wanda", sparsity=0.5, targets=("query",))
    rows = sensitivity(lively_bert(), config, nonzero, (0.5,), Calibration(sentence_batches()))
    assert len(rows) == 2
    assert rows[0].actual == 0.5


def test_a_layer_is_pruned_alone_where_others_have_its_name_inside_of_blocks() -> None:
    inner = nn.Sequential()
    inner.add_module("first", nn.Linear(4, 4))
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 4))
    model.add_module("block", inner)
    model.add_module("head", nn.Linear(4, 2))
    seen = []

    def zeros_of_the_block(net: nn.Module) -> float:
        seen.append(int((net.get_parameter("block.first.weight") == 0).sum()))
        return 1.0

    rows = sensitivity(model, PruningConfig(sparsity=0.5), zeros_of_the_block, (0.5,))
    assert [row.layer for row in rows] == ["first", "block.first"]
    assert seen == [0, 0, 8]
    assert nonzero(model) == 16 + 16 + 8 + 10
