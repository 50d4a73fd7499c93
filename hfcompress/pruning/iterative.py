"""Pruning in rounds: ``find_ticket`` rewinds in between (1912.05671), ``progressive`` recovers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfcompress.calibration.moments import weight_of
from hfcompress.errors import ConfigError
from hfcompress.pruning.callback import PruningCallback
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.keep_zeros import at_each_step
from hfcompress.pruning.prune import prune
from hfcompress.pruning.targets import select_targets
from hfcompress.pruning.training_config import (
    LotteryConfig,
    ProgressiveConfig,
    PruningTrainingConfig,
)
from hfcompress.pruning.training_masks import Prune, TrainingMasks
from hfcompress.training.loops import as_number

Train = Callable[[nn.Module, Sequence[TrainerCallback]], None]
"""``train(model, callbacks)``: a whole training of the model in place, the same each time, with
the callbacks in its ``Trainer``."""
OwnTrain = Callable[[nn.Module], object]
"""``train(model)``: the same in a loop of the caller's own, with any optimizer of torch."""


@dataclass(frozen=True)
class LotteryRound:
    """One training of the search.

    Attributes:
        sparsity: of the targets, while it trained; 0 for the dense training.
        metric: after training, where an ``evaluate`` was given.
    """

    sparsity: float
    metric: float | None


def find_ticket(
    model: nn.Module,
    config: LotteryConfig,
    train: Train | OwnTrain,
    evaluate: Callable[[nn.Module], float] | None = None,
) -> list[LotteryRound]:
    """Train, prune the smallest weights, rewind the others to step k, and train again.

    The first training is dense and keeps the state after step k. Each round prunes by the
    trained magnitudes, puts the weights that are left back to step k, and trains from there with
    the learning rates of steps k to the end. The model ends as the last round's training left it.

    Args:
        model: where training starts; changed in place.
        config: sparsity, rounds and k.
        train: called ``rounds + 1`` times. ``train(model, callbacks)`` must hand the callbacks to
            its ``Trainer``: they keep step k, hold the masks, and end a rewound training k steps
            early. ``train(model)`` is a loop of your own, whose optimizer is watched; it trains
            its whole length from step k each time.
        evaluate: measures each trained model.

    Returns:
        one record for each training.

    Raises:
        ConfigError: ``train`` never reached step k, or left its callbacks out.
    """
    own = len(inspect.signature(train).parameters) == 1
    rounds_of: Rounds = (
        _OwnRounds(cast(OwnTrain, train), config) if own else _Rounds(cast(Train, train), config)
    )
    state = rounds_of.dense(model)
    if state is None:
        raise ConfigError(
            f"rewind_step {config.rewind_step} was never reached; rewind to an earlier step, train "
            f"longer, and "
            f"{'train with an optimizer of torch' if own else 'hand the callbacks to the Trainer'}"
        )
    rounds = [LotteryRound(0.0, _measure(model, evaluate))]
    for sparsity in config.sparsities():
        report = prune(model, _pruning(config, sparsity))
        _rewind(model, state, [layer.name for layer in report.layers])
        kept = rounds_of.sparse(model)
        rounds.append(LotteryRound(kept, _measure(model, evaluate)))
    return rounds


class Rounds(Protocol):
    """The trainings of a search for a ticket."""

    def dense(self, model: nn.Module) -> dict[str, Tensor] | None:
        """Train without masks; return the state after step k, or None."""
        ...

    def sparse(self, model: nn.Module) -> float:
        """Train a rewound model and keep its zeros; return the sparsity that was kept."""
        ...


@dataclass(frozen=True)
class _Rounds:
    """Trainings by a ``Trainer``, which takes callbacks."""

    train: Train
    config: LotteryConfig

    def dense(self, model: nn.Module) -> dict[str, Tensor] | None:
        snapshot = _Snapshot(self.config.rewind_step)
        self.train(model, [snapshot])
        return snapshot.state

    def sparse(self, model: nn.Module) -> float:
        keep = PruningCallback(_keep_config(self.config))
        self.train(model, [keep, _FromStep(self.config.rewind_step)])
        return keep.sparsity


@dataclass(frozen=True)
class _OwnRounds:
    """Trainings by a loop of the caller's own, whose optimizer is watched."""

    train: OwnTrain
    config: LotteryConfig

    def dense(self, model: nn.Module) -> dict[str, Tensor] | None:
        states = {0: _copy(model)} if self.config.rewind_step == 0 else {}
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1
            if steps == self.config.rewind_step:
                states[steps] = _copy(model)

        with at_each_step(model, lambda: None, count):
            self.train(model)
        return states.get(self.config.rewind_step) if steps else None

    def sparse(self, model: nn.Module) -> float:
        masks = TrainingMasks(model, _keep_config(self.config), 1)
        masks.update(0)
        with at_each_step(model, masks.before_step, masks.after_step):
            self.train(model)
        return masks.sparsity


def _keep_config(config: LotteryConfig) -> PruningTrainingConfig:
    return PruningTrainingConfig(
        method="keep_zeros", targets=config.targets, exclude=config.exclude
    )


class _Snapshot(TrainerCallback):
    """Keeps the model's state after a number of optimizer steps."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.state: dict[str, Tensor] | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Step 0 is before the first."""
        self._take(state, cast(nn.Module, kwargs["model"]))

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Every other step ends here."""
        self._take(state, cast(nn.Module, kwargs["model"]))

    def _take(self, state: TrainerState, model: nn.Module) -> None:
        if state.global_step == self.step:
            self.state = {name: t.detach().clone() for name, t in model.state_dict().items()}


class _FromStep(TrainerCallback):
    """Makes a training start at a later step: its learning rates, and as many steps fewer."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Move the learning rate schedule on."""
        with warnings.catch_warnings():
            # torch warns that the optimizer has not stepped: it did, in the dense training.
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(self.step):
                cast(LRScheduler, kwargs["lr_scheduler"]).step()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Stop when the steps that are left are done."""
        if state.global_step >= state.max_steps - self.step:
            control.should_training_stop = True


def _pruning(config: LotteryConfig, sparsity: float) -> PruningConfig:
    return PruningConfig(
        method="magnitude",
        sparsity=sparsity,
        scope=config.scope,
        targets=config.targets,
        exclude=config.exclude,
    )


def _rewind(model: nn.Module, state: dict[str, Tensor], pruned: Sequence[str]) -> None:
    """Put the state back, with the zeros that the pruned modules have now."""
    weights = [weight_of(module).data for module in select_targets(model, pruned).values()]
    zeros = [weight == 0 for weight in weights]
    model.load_state_dict(state)
    for weight, zero in zip(weights, zeros, strict=True):
        weight.masked_fill_(zero, 0)


def _measure(model: nn.Module, evaluate: Callable[[nn.Module], float] | None) -> float | None:
    return None if evaluate is None else as_number(evaluate(model), "evaluate")


Recover = Callable[[nn.Module], object]
"""``recover(model)``: train in place, and leave zeros zero."""
Evaluate = Callable[[nn.Module], float]
"""``evaluate(model)``: a metric for which more is better."""


@dataclass(frozen=True)
class ProgressiveRound:
    """One round.

    Attributes:
        sparsity: what was asked for.
        metric: after recovery.
        loss: the dense model's metric minus this one.
        accepted: whether the loss is within the limit.
    """

    sparsity: float
    metric: float
    loss: float
    accepted: bool


def progressive(
    model: nn.Module,
    config: ProgressiveConfig,
    prune: Prune,
    recover: Recover,
    evaluate: Evaluate,
) -> list[ProgressiveRound]:
    """Prune and recover in rounds of growing sparsity, in place.

    With ``max_loss``, the first round that loses more ends it, and the model goes back to the
    state after the last accepted round (the dense one, if there is none).

    Args:
        model: changed in place.
        config: the rounds, and how much may be lost.
        prune: any one-shot method; it finds the model as the last round left it.
        recover: any training that keeps zeros, such as one with `PruningCallback` and method
            ``keep_zeros``.
        evaluate: called once before the first round, and once after each.

    Returns:
        one record for each round that was run.
    """
    dense = as_number(evaluate(model), "evaluate")
    accepted = _copy(model) if config.max_loss is not None else None
    rounds: list[ProgressiveRound] = []
    for sparsity in config.sparsities():
        prune(model, sparsity)
        recover(model)
        metric = as_number(evaluate(model), "evaluate")
        within = config.max_loss is None or dense - metric <= config.max_loss
        rounds.append(ProgressiveRound(sparsity, metric, dense - metric, within))
        if accepted is None:
            continue
        if not within:
            model.load_state_dict(accepted)
            break
        accepted = _copy(model)
    return rounds


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
