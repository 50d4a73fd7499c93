from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from hfcompress.errors import ConfigError
from hfcompress.pruning.iterative import find_ticket
from hfcompress.pruning.training_config import LotteryConfig

MakeTrainer = Callable[..., Trainer]
CONFIG = LotteryConfig(sparsity=0.75, rounds=2, rewind_step=5)


class Runs:
    """A ``train`` that keeps what each training began with, did and ended with."""

    def __init__(self, make_trainer: MakeTrainer, steps: int = 12) -> None:
        self.make_trainer, self.steps = make_trainer, steps
        self.begins: list[dict[str, torch.Tensor]] = []
        self.ends: list[dict[str, torch.Tensor]] = []
        self.rates: list[list[float]] = []

    def __call__(self, model: nn.Module, callbacks: Sequence[TrainerCallback]) -> None:
        trainer = self.make_trainer(*callbacks, model=model, max_steps=self.steps, logging_steps=1)
        self.begins.append({n: v.detach().clone() for n, v in model.state_dict().items()})
        trainer.train()
        self.ends.append({n: v.detach().clone() for n, v in model.state_dict().items()})
        rows = [row for row in trainer.state.log_history if "learning_rate" in row]
        self.rates.append([row["learning_rate"] for row in rows])


@pytest.fixture
def model(make_trainer: MakeTrainer) -> nn.Module:
    built = make_trainer().model
    assert isinstance(built, nn.Module)
    return built


def test_each_round_starts_from_step_k_with_the_smallest_weights_zero(
    model: nn.Module, make_trainer: MakeTrainer
) -> None:
    runs = Runs(make_trainer)
    find_ticket(model, CONFIG, runs)
    short = Runs(make_trainer, steps=12)
    fresh = make_trainer().model
    assert isinstance(fresh, nn.Module)
    step_five: dict[str, torch.Tensor] = {}

    class Stop(TrainerCallback):
        def on_step_end(self, args: object, state: object, control: object, **kw: Any) -> None:
            if state.global_step == 5:  # type: ignore[attr-defined]
                step_five.update({n: v.clone() for n, v in kw["model"].state_dict().items()})
                control.should_training_stop = True  # type: ignore[attr-defined]

    short(fresh, [Stop()])
    assert len(runs.begins) == 3
    for before, begin in zip(runs.ends, runs.begins[1:], strict=False):
        for name, value in begin.items():
            left = value != 0
            assert torch.equal(value[left], step_five[name][left])
            if "encoder" in name and value.dim() == 2:
                assert before[name][~left].abs().max() <= before[name][left].abs().max()


def test_masks_hold_through_the_rewound_trainings(
    model: nn.Module, make_trainer: MakeTrainer
) -> None:
    runs = Runs(make_trainer)
    rounds = find_ticket(model, CONFIG, runs, evaluate=lambda model: 1.0)
    assert [round(done.sparsity, 3) for done in rounds] == [0.0, 0.5, 0.75]
    assert [done.metric for done in rounds] == [1.0, 1.0, 1.0]
    for begin, end in zip(runs.begins[1:], runs.ends[1:], strict=True):
        for name, value in begin.items():
            if "encoder" in name and value.dim() == 2:
                assert torch.equal(value == 0, end[name] == 0)


def test_a_rewound_training_takes_the_learning_rates_from_step_k_on(
    model: nn.Module, make_trainer: MakeTrainer
) -> None:
    runs = Runs(make_trainer)
    find_ticket(model, CONFIG, runs)
    assert len(runs.rates[0]) == 12
    assert runs.rates[1] == pytest.approx(runs.rates[0][5:])
    assert runs.rates[2] == pytest.approx(runs.rates[0][5:])


def test_layer_and_global_scope_find_different_tickets(make_trainer: MakeTrainer) -> None:
    layers = {}
    for scope in ("layer", "global"):
        model = make_trainer().model
        assert isinstance(model, nn.Module)
        find_ticket(
            model, CONFIG.replace(scope=scope, targets=["query", "key"]), Runs(make_trainer)
        )
        keys = [n for n in model.state_dict() if n.endswith(("query.weight", "key.weight"))]
        layers[scope] = [int((model.state_dict()[name] == 0).sum()) for name in keys]
        untouched = [n for n in model.state_dict() if n.endswith("value.weight")]
        assert not any((model.state_dict()[name] == 0).any() for name in untouched)
    assert set(layers["layer"]) == {192}
    assert layers["global"] != layers["layer"]
    assert sum(layers["global"]) == sum(layers["layer"])


def test_exclude_leaves_modules_alone(model: nn.Module, make_trainer: MakeTrainer) -> None:
    find_ticket(model, CONFIG.replace(exclude=["query"]), Runs(make_trainer))
    zero = {n: bool((v == 0).any()) for n, v in model.state_dict().items() if v.dim() == 2}
    assert not any(found for name, found in zero.items() if "query" in name)
    assert all(found for name, found in zero.items() if "key" in name)


def test_a_step_that_is_never_reached_is_refused(
    model: nn.Module, make_trainer: MakeTrainer
) -> None:
    with pytest.raises(ConfigError, match="rewind_step 13 was never reached"):
        find_ticket(model, CONFIG.replace(rewind_step=13), Runs(make_trainer))
