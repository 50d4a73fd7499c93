"""Names that courses and papers use, each a short way to a verb of this package."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from hfcompress.errors import ConfigError, TargetError
from hfcompress.models.surgery import keep_along
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.iterative import ProgressiveRound, progressive
from hfcompress.pruning.prune import PruneReport, prune
from hfcompress.pruning.targets import literal, weight_matrices
from hfcompress.pruning.training_config import ProgressiveConfig

Layer = TypeVar("Layer", nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def prune_weights_by_magnitude(layer: nn.Module, pruning_ratio: float = 0.5) -> PruneReport:
    """Set the smallest weights of one layer to zero, in place; biases stay.

    Args:
        layer: a Linear, a convolution, or an LSTM, whose matrices are pruned one by one.
        pruning_ratio: share of the weights, from 0 to 1.

    Raises:
        TargetError: a layer without a weight matrix.
        ConfigError: a ratio out of range.
    """
    return prune_model_by_magnitude(nn.ModuleDict({"layer": layer}), pruning_ratio)


def prune_model_by_magnitude(
    model: nn.Module, pruning_ratio: float = 0.5, scope: str = "layer"
) -> PruneReport:
    """Set the smallest weights of every weight matrix to zero, in place, the head's too.

    Embeddings and biases stay. `hfcompress.prune` leaves the head dense by default.

    Args:
        model: any module.
        pruning_ratio: share of the weights, from 0 to 1.
        scope: ``layer`` for the same share of each layer, ``global`` for the smallest of all.

    Raises:
        TargetError: a model without weight matrices.
        ConfigError: a ratio out of range, or an unknown scope.
    """
    names = tuple(map(literal, weight_matrices(model)))
    if not names:
        raise TargetError(f"{type(model).__name__} has no weight matrix; give a Linear or Conv")
    fields = {"sparsity": pruning_ratio, "scope": scope, "targets": names}
    return prune(model, PruningConfig.from_dict(fields))


def progressive_prune(
    model: nn.Module,
    target_sparsity: float,
    steps: int,
    train: Callable[[nn.Module], object],
    evaluate: Callable[[nn.Module], float],
) -> list[ProgressiveRound]:
    """Prune by magnitude and train in turns, in place, up to a sparsity.

    Args:
        model: any module; each matrix is pruned, the head's too.
        target_sparsity: after the last step.
        steps: how many.
        train: trains in place and keeps zeros, as with `hfcompress.keep_zeros`.
        evaluate: a metric for which more is better.

    Raises:
        ConfigError: a sparsity or a number of steps out of range.
    """
    config = ProgressiveConfig.from_dict({"sparsity": target_sparsity, "rounds": steps})
    return progressive(model, config, prune_model_by_magnitude, train, evaluate)


def prune_structured(layer: Layer, n: int) -> tuple[Layer, torch.Tensor]:
    """Return a smaller layer without its ``n`` filters of the smallest L1 norm (1608.08710).

    Args:
        layer: a Linear or a convolution without groups; not changed. What follows it must lose
            the same inputs: `hfcompress.shrink` does that for a whole network.
        n: filters (outputs) to remove.

    Returns:
        the layer, and the numbers of the filters that stay, ascending.

    Raises:
        ConfigError: no filter would be left, or ``n`` below 0.
        TargetError: a convolution with groups.
    """
    count = len(layer.weight)
    if not 0 <= n < count:
        raise ConfigError(f"cannot remove {n} of {count} filters; give a number below {count}")
    if getattr(layer, "groups", 1) != 1:
        raise TargetError(
            "the filters of a convolution with groups belong together; use hfcompress.shrink"
        )
    norms = layer.weight.detach().abs().flatten(1).sum(1)
    kept = norms.topk(count - n).indices.sort().values
    smaller = copy.deepcopy(layer)
    for parameter in (smaller.weight, smaller.bias):
        if parameter is not None:
            keep_along(parameter, kept, 0)
    if isinstance(smaller, nn.Linear):
        smaller.out_features = len(kept)
    else:
        smaller.out_channels = len(kept)
    return smaller, kept
