"""Narrower hidden states: what the features that go told a layer is folded into those that stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.models.sublayers import sublayers

# Share of the mean variance that is added to each feature's, so that features that hardly vary in
# few rows do not get wild coefficients.
_DAMPING = 0.01


@dataclass(frozen=True)
class FeatureFold:
    """The least-squares guess of the features that go from those that stay, at one layer's input.

    ``x[gone] ~ coefficients @ x[kept] + offset``, the affine fold of 2602.05243; it gives a weight
    that reads x a substitute that reads ``x[kept]`` only.

    Attributes:
        kept, gone: feature numbers.
        coefficients: float32 (gone, kept).
        offset: float32 (gone,).
    """

    kept: Tensor
    gone: Tensor
    coefficients: Tensor
    offset: Tensor

    def weight(self, weight: Tensor) -> Tensor:
        """A weight (outputs, features) as one that reads the kept features: (outputs, kept)."""
        return weight[:, self.kept] + weight[:, self.gone] @ self.coefficients.to(weight.dtype)

    def bias(self, bias: Tensor, weight: Tensor) -> Tensor:
        """The bias that goes with `weight`, which is given whole: (outputs, features)."""
        return bias + weight[:, self.gone] @ self.offset.to(weight.dtype)


@torch.no_grad()
def collect_folds(
    model: nn.Module, kept: Tensor, batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, FeatureFold]:
    """A fold for each projection that reads the hidden states, from the inputs it really gets.

    Args:
        model: a model of a known family; run in evaluation mode.
        kept: numbers of the features that stay.
        batches: model inputs; padding is left out.

    Returns:
        Folds by module name.
    """
    moments: dict[str, _Moments] = {}
    handles = []
    current: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            states = args[0]
            mask = current["mask"]
            rows = states.flatten(0, -2) if mask is None else states[mask]
            moments.setdefault(name, _Moments()).add(rows.double().cpu())

        return keep

    for part in sublayers(model):
        for name in part.producers:
            handles.append(model.get_submodule(name).register_forward_pre_hook(watch(name)))
    training = model.training
    model.eval()
    try:
        for batch in batches:
            mask = batch.get("attention_mask")
            current["mask"] = None if mask is None else mask.bool()
            model(**{name: value for name, value in batch.items() if name != "labels"})
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return {name: moment.fold(kept) for name, moment in moments.items()}


class _Moments:
    """Sums over rows, from which a regression follows."""

    def __init__(self) -> None:
        self.products: Tensor | float = 0.0
        self.sums: Tensor | float = 0.0
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        self.products = self.products + rows.t() @ rows
        self.sums = self.sums + rows.sum(0)
        self.rows += rows.shape[0]

    def fold(self, kept: Tensor) -> FeatureFold:
        assert isinstance(self.products, Tensor)
        assert isinstance(self.sums, Tensor)
        mean = self.sums / self.rows
        covariance = self.products / self.rows - mean[:, None] * mean
        gone = torch.ones(mean.numel(), dtype=torch.bool)
        gone[kept] = False
        others = gone.nonzero().flatten()
        inner = covariance[kept][:, kept]
        inner = inner + _DAMPING * inner.diagonal().mean() * torch.eye(kept.numel())
        coefficients = torch.linalg.solve(inner, covariance[kept][:, others]).t()
        offset = mean[others] - coefficients @ mean[kept]
        return FeatureFold(kept.cpu(), others, coefficients.float(), offset.float())
