"""``prune``: zeros in the weights of a model, by one config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.architectures import select_modules
from hfcompress.errors import ModelError
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.masks import count_zeros, is_finite, zero_smallest_


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: the module's name in the model.
        weights: number of weights (the bias is not counted).
        zeros: weights that are zero after pruning.
        requested: weights that were to be zero.
    """

    name: str
    weights: int
    zeros: int
    requested: int

    @property
    def sparsity(self) -> float:
        """Share of the layer's weights that are zero."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class PruneReport:
    """What `prune` did.

    Attributes:
        requested: sparsity asked for, of the targets.
        layers: one record for each pruned module, in model order.
        notes: sentences about what the caller should know.
    """

    requested: float
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights in the targets."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Number of zeros in the targets' weights."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def actual(self) -> float:
        """Share of the targets' weights that are zero."""
        return self.zeros / self.weights

    def plain(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        return {
            "requested": self.requested,
            "actual": self.actual,
            "weights": self.weights,
            "zeros": self.zeros,
            "layers": [{**asdict(layer), "sparsity": layer.sparsity} for layer in self.layers],
            "notes": list(self.notes),
        }


@torch.no_grad()
def prune(model: nn.Module, config: PruningConfig) -> PruneReport:
    """Set the least important weights of a model to zero, in place.

    Args:
        model: any module; the targets' weights are changed in place.
        config: what to prune and how much.

    Returns:
        requested and actual sparsity, and a record for each layer. The number of zeros is
        ``round(sparsity * weights)``, in each layer or (global scope) in all; weights that are
        zero already count first.

    Raises:
        TargetError: a pattern that matches nothing, or nothing to prune.
        ModelError: a weight that is NaN or infinite (the layer is named).
    """
    modules = select_modules(model, config.targets, config.exclude)
    weights = {name: dense_weight(name, module) for name, module in modules.items()}
    if config.scope == "global":
        total = sum(weight.numel() for weight in weights.values())
        zero_smallest_(list(weights.values()), round(config.sparsity * total))
    else:
        for weight in weights.values():
            zero_smallest_([weight], round(config.sparsity * weight.numel()))
    return PruneReport(config.sparsity, _records(weights, config))


def dense_weight(name: str, module: nn.Module) -> Tensor:
    """A module's weight, checked to be finite.

    Raises:
        ModelError: a weight that is NaN or infinite.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not is_finite(weight):
        raise ModelError(f"{name}.weight holds NaN or infinite values; load a sound checkpoint")
    return weight.detach()


def _records(weights: Mapping[str, Tensor], config: PruningConfig) -> tuple[LayerReport, ...]:
    records = []
    for name, weight in weights.items():
        zeros = count_zeros(weight)
        asked = zeros if config.scope == "global" else round(config.sparsity * weight.numel())
        records.append(LayerReport(name, weight.numel(), zeros, asked))
    return tuple(records)
