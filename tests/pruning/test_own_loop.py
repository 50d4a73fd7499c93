"""Lottery tickets and progressive pruning with training functions of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hfcompress.errors import ConfigError
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.iterative import find_ticket, progressive
from hfcompress.pruning.keep_zeros import keep_zeros
from hfcompress.pruning.prune import prune
from hfcompress.pruning.training_config import LotteryConfig, ProgressiveConfig
from hfcompress.training.loops import evaluate, train_one_epoch
from tests.plain_networks import NETWORKS

NETWORK = NETWORKS["mlp"]
BATCHES = [NETWORK.rows(8, seed) for seed in (1, 2, 3)]


class Training:
    """``train(model)``: three steps of a new optimizer; keeps the weights around each of them."""

    def __init__(self) -> None:
        self.begins: list[Tensor] = []
        self.seconds: list[Tensor] = []
        self.ends: list[Tensor] = []

    def __call__(self, model: nn.Module) -> None:
        weight = model.get_parameter("first.weight")
        optimizer = torch.optim.AdamW(model.parameters(), 0.05)
        self.begins.append(weight.detach().clone())
        for place, batch in enumerate(BATCHES):
            train_one_epoch(model.eval(), [batch], optimizer)
            if place == 1:
                self.seconds.append(weight.detach().clone())
        self.ends.append(weight.detach().clone())


@pytest.mark.parametrize("step", [0, 2])
def test_tickets_rewind_to_step_k_and_hold_their_zeros(step: int) -> None:
    training, model = Training(), NETWORK.model()
    first = model.get_parameter("first.weight").detach().clone()
    config = LotteryConfig(sparsity=0.75, rounds=2, rewind_step=step, targets=("first",))
    rounds = find_ticket(model, config, training, lambda model: evaluate(model, BATCHES))
    rewound = first if step == 0 else training.seconds[0]
    assert [part.sparsity for part in rounds] == pytest.approx([0, 0.5, 0.75], abs=0.01)
    for begin, before, end in zip(
        training.begins[1:], training.ends, training.ends[1:], strict=False
    ):
        zeros = begin == 0
        assert torch.equal(begin, rewound.masked_fill(zeros, 0))
        assert before[zeros].abs().max() <= before[~zeros].abs().min()
        assert torch.equal(end == 0, zeros)
    assert all(part.metric is not None and 0 <= part.metric <= 1 for part in rounds)


def test_a_training_that_never_reaches_step_k_is_refused() -> None:
    config = LotteryConfig(sparsity=0.5, rounds=1, rewind_step=4, targets=("first",))
    with pytest.raises(ConfigError, match="rewind_step 4 was never reached"):
        find_ticket(NETWORK.model(), config, Training())
    with pytest.raises(ConfigError, match="train with an optimizer of torch"):
        find_ticket(NETWORK.model(), config.replace(rewind_step=0), lambda model: None)


def test_an_evaluation_that_gives_no_number_is_refused() -> None:
    config = LotteryConfig(sparsity=0.5, rounds=1, rewind_step=0, targets=("first",))
    with pytest.raises(ConfigError, match="evaluate returned None, which is not a finite number"):
        find_ticket(NETWORK.model(), config, Training(), lambda model: None)  # type: ignore[arg-type, return-value]


def test_progressive_pruning_with_a_loop_of_ones_own() -> None:
    model = NETWORK.model()

    def recover(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        with keep_zeros(model, optimizer):
            for batch in BATCHES:
                train_one_epoch(model, [batch], optimizer)

    rounds = progressive(
        model,
        ProgressiveConfig(sparsity=0.8, rounds=2),
        lambda model, sparsity: prune(model, PruningConfig(sparsity=sparsity)),
        recover,
        lambda model: evaluate(model, BATCHES),
    )
    assert [part.sparsity for part in rounds][-1] == pytest.approx(0.8)
    zeros = (model.get_parameter("first.weight") == 0).float().mean()
    assert float(zeros) == pytest.approx(0.8, abs=0.01)
