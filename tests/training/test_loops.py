"""Loops on any loader: they train, measure, hold zeros, and refuse in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hfcompress.errors import ConfigError, DataError, ModelError, TargetError
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.keep_zeros import keep_zeros
from hfcompress.pruning.prune import prune
from hfcompress.training.loops import evaluate, train_one_epoch
from tests.plain_networks import NETWORKS


def separable(rows: int = 60) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % 3
    return nn.functional.one_hot(labels, 12).float() * 3 + torch.randn(
        rows, 12, generator=draw
    ), labels


def sgd(model: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=0.01)


def test_an_epoch_is_that_of_a_loop_by_hand() -> None:
    x, y = separable()
    mine, theirs = NETWORKS["mlp"].model(), NETWORKS["mlp"].model()
    for module in (mine, theirs):
        module.register_forward_pre_hook(lambda module, _: module.eval() and None)  # no dropout
    found = train_one_epoch(mine, [(x[:40], y[:40]), (x[40:], y[40:])], sgd(mine))
    optimizer, total = sgd(theirs), 0.0
    for part in (slice(0, 40), slice(40, 60)):
        loss = nn.functional.cross_entropy(theirs(x[part]), y[part])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.item() * len(x[part])
    assert found == pytest.approx(total / 60, rel=1e-6)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_training_learns_and_metrics_are_those_of_all_rows() -> None:
    x, y = separable()
    model = NETWORKS["mlp"].model()
    loader = [(x[:50], y[:50]), (x[50:], y[50:])]
    optimizer = sgd(model)
    losses = [train_one_epoch(model, loader, optimizer) for _ in range(12)]
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():
        expected = (model.eval()(x).argmax(1) == y).float().mean().item()
    assert evaluate(model, loader) == pytest.approx(expected)
    assert expected > 0.9
    assert evaluate(model, loader, lambda logits, labels: float(len(logits))) == 60


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_kind_trains_and_is_measured(kind: str) -> None:
    network = NETWORKS[kind]
    model, loader = network.model(), network.loader(8, 4)
    before = [parameter.clone() for parameter in model.parameters()]
    assert train_one_epoch(model, loader, sgd(model)) > 0
    assert any(
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    )
    assert 0 <= evaluate(model, loader) <= 1


def test_labels_of_numbers_train_by_their_squares() -> None:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    loader = [(x, x.sum(1))]
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(40):
        train_one_epoch(model, loader, optimizer)
    assert evaluate(model, loader) < 0.05


def test_tokens_without_a_label_do_not_count() -> None:
    network = NETWORKS["lstm tagger"]
    model, (x, y) = network.model(), network.rows(6)
    y[:, 4:] = -100
    with torch.no_grad():
        expected = (model(x).logits[:, :4].argmax(-1) == y[:, :4]).float().mean().item()
    assert evaluate(model, [(x, y)]) == pytest.approx(expected)


def test_zeros_stay_zero_with_any_optimizer() -> None:
    x, y = separable()
    for optimizer in (sgd, lambda model: torch.optim.AdamW(model.parameters(), 0.05)):
        model = NETWORKS["mlp"].model()
        prune(model, PruningConfig(sparsity=0.8, targets=("Linear",)))
        zeros = {name: value == 0 for name, value in model.named_parameters() if value.dim() > 1}
        before = model.first.weight.clone()  # type: ignore[union-attr, operator]
        own: Any = optimizer(model)
        train_one_epoch(model, [(x, y)], own)  # moments of all weights
        prune(model, PruningConfig(sparsity=0.8, targets=("Linear",)))
        zeros = {name: value == 0 for name, value in model.named_parameters() if value.dim() > 1}
        with keep_zeros(model, own) as masks:
            for _ in range(3):
                train_one_epoch(model, [(x, y)], own)
        assert masks.sparsity == pytest.approx(0.8, abs=0.01)
        for name, value in model.named_parameters():
            if name in zeros:
                assert torch.equal(value == 0, zeros[name])
        assert not torch.equal(model.first.weight, before)  # type: ignore[arg-type, union-attr]
        train_one_epoch(model, [(x, y)], own)  # outside nothing is held
        assert (model.last.weight == 0).float().mean() < 0.5  # type: ignore[union-attr]


def test_refuses_what_cannot_be_kept_or_compared() -> None:
    x, y = separable()
    model = NETWORKS["mlp"].model()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TargetError, match="no weight matrix of Mlp has zeros to keep"):
        keep_zeros(model, sgd(model)).__enter__()
    pruned = NETWORKS["mlp"].model()
    prune(pruned, PruningConfig(sparsity=0.5))
    with pytest.raises(ConfigError, match="make it from model"):
        keep_zeros(pruned, sgd(model)).__enter__()
    for labels, says in (
        (y.float() + 0.5, "class labels must be integers"),
        (y + 3, "labels are from 3 to 5 and the model has 3 classes"),
        (y[:, None].expand(-1, 2), "do not fit logits of shape"),
    ):
        with pytest.raises(DataError, match=says):
            train_one_epoch(model, [(x, labels)], sgd(model))
        with pytest.raises(DataError, match=says):
            evaluate(model, [(x, labels)])
    with pytest.raises(DataError, match="a batch has no labels; give tuples whose last"):
        train_one_epoch(model, [x], sgd(model))
    with pytest.raises(ConfigError, match="metric returned 'good', which is not a finite number"):
        evaluate(model, [(x, y)], lambda logits, labels: "good")  # type: ignore[arg-type, return-value]
    with pytest.raises(ModelError, match="Flatten has no parameters"):
        evaluate(nn.Flatten(), [(x, y)])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
