"""``progressive``: prune a little, recover, prune again, as far as the accuracy allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from hfcompress.pruning.training_config import ProgressiveConfig
from hfcompress.pruning.training_masks import Prune

Recover = Callable[[nn.Module], None]
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
    dense = evaluate(model)
    accepted = _copy(model) if config.max_loss is not None else None
    rounds: list[ProgressiveRound] = []
    for sparsity in config.sparsities():
        prune(model, sparsity)
        recover(model)
        metric = evaluate(model)
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
