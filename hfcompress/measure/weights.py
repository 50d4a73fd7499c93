"""Statistics and histogram of weights, with the spike at zero kept apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from hfcompress.errors import ConfigError, ModelError, TargetError
from hfcompress.measure.count import count_nonzeros
from hfcompress.measure.layers import weighted_layers

CHUNK = 2**22
"""Values binned at a time: float32 counts stay exact, and copies stay small."""

SPAN = 4.0
"""The default histogram reaches this many standard deviations to either side of the mean."""


@dataclass(frozen=True)
class WeightDistribution:
    """How weights are distributed.

    ``minimum``, ``maximum``, ``mean`` and ``std`` (population) are over all values, zeros
    included. ``counts[i]`` is the number of non-zero values in ``[edges[i], edges[i + 1])`` (the
    last bin includes its right edge; binned in float32); ``below`` and ``above`` are the non-zero
    values outside the edges, so that ``zeros + below + sum(counts) + above == count``.
    """

    count: int
    zeros: int
    minimum: float
    maximum: float
    mean: float
    std: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    below: int
    above: int

    @property
    def sparsity(self) -> float:
        """The fraction of exact zeros."""
        return self.zeros / self.count

    def plain(self) -> dict[str, Any]:
        """The fields as data that JSON can hold."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def analyze_weight_distribution(
    weights: nn.Module | torch.Tensor,
    targets: Iterable[str] | None = None,
    *,
    bins: int = 81,
    edges: Sequence[float] | None = None,
) -> WeightDistribution:
    """Minimum, maximum, mean, standard deviation and histogram, without a concatenated copy.

    Args:
        weights: a model (its target weights together) or one tensor of any shape.
        targets: names of modules; by default every Linear, convolution and Conv1D.
        bins: how many equal bins; they span four standard deviations around the mean.
        edges: equally spaced bin edges to use instead, such as those of the dense model, so that
            two histograms can be laid over each other.

    Raises:
        TargetError: a target that is not there, or no weight at all.
        ModelError: a weight with NaN or infinity.
        ConfigError: fewer than one bin, or edges that do not rise.
    """
    tensors = _tensors(weights, targets)
    count = sum(tensor.numel() for tensor in tensors.values())
    zeros = count - sum(count_nonzeros(tensor) for tensor in tensors.values())
    minimum, maximum = _extremes(tensors)
    mean, std = _mean_and_std(list(tensors.values()), count)
    chosen = _edges(minimum, maximum, mean, std, bins) if edges is None else _checked(edges)
    counts, below, above = _histogram(list(tensors.values()), chosen)
    return WeightDistribution(
        count, zeros, minimum, maximum, mean, std, chosen, counts, below, above
    )


def _tensors(
    weights: nn.Module | torch.Tensor, targets: Iterable[str] | None
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor]
    if isinstance(weights, torch.Tensor):
        found = {"tensor": weights.detach()}
    else:
        found = {name: w.detach() for name, w in weighted_layers(weights, targets).items()}
    found = {name: tensor for name, tensor in found.items() if tensor.numel()}
    if not found:
        raise TargetError("there are no weights to analyze; give a model with a Linear or Conv")
    return found


def _extremes(tensors: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Smallest and largest value; NaN and infinity show in them, so they are refused here."""
    found = {name: torch.aminmax(tensor) for name, tensor in tensors.items()}
    for name, extreme in found.items():
        if not math.isfinite(float(extreme.min) + float(extreme.max)):
            raise ModelError(
                f"the weight of {name!r} holds NaN or infinity; load or train the model anew"
            )
    minimum = min(float(extreme.min) for extreme in found.values())
    return minimum, max(float(extreme.max) for extreme in found.values())


def _mean_and_std(tensors: list[torch.Tensor], count: int) -> tuple[float, float]:
    """Mean and population standard deviation, merged tensor by tensor in float64."""
    parts = []
    for tensor in tensors:
        variance, mean = torch.var_mean(tensor.float(), correction=0)
        parts.append((tensor.numel(), float(mean), float(variance)))
    total = math.fsum(n * mean for n, mean, _ in parts) / count
    spread = math.fsum(n * (variance + (mean - total) ** 2) for n, mean, variance in parts) / count
    return total, math.sqrt(spread)


def _edges(minimum: float, maximum: float, mean: float, std: float, bins: int) -> tuple[float, ...]:
    if bins < 1:
        raise ConfigError(f"bins must be at least 1, not {bins}")
    low, high = max(minimum, mean - SPAN * std), min(maximum, mean + SPAN * std)
    if not low < high:  # all values equal
        low, high = mean - 0.5, mean + 0.5
    return (*(low + (high - low) * i / bins for i in range(bins)), high)


def _checked(edges: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(edge) for edge in edges)
    steps = [right - left for left, right in pairwise(values)]
    if not steps or min(steps) <= 0 or max(steps) > 1.001 * min(steps):
        raise ConfigError("edges must be at least two equally spaced numbers that rise")
    return values


def _histogram(
    tensors: list[torch.Tensor], edges: tuple[float, ...]
) -> tuple[tuple[int, ...], int, int]:
    """Non-zero values per bin, below the first edge and above the last one."""
    low, high, bins = edges[0], edges[-1], len(edges) - 1
    counts = torch.zeros(bins + 2, dtype=torch.float64)
    for tensor in tensors:
        for part in torch.split(tensor.reshape(-1), CHUNK):
            counts += _bin(part.float(), bins, low, high)
            # Zeros leave the bin that holds them; picking out the others would copy the weights.
            zeros = part.numel() - count_nonzeros(part)
            counts -= zeros * _bin(part.new_zeros(1).float(), bins, low, high)
    below, *inside, above = (int(value) for value in counts.tolist())
    return tuple(inside), below, above


def _bin(values: torch.Tensor, bins: int, low: float, high: float) -> torch.Tensor:
    """Counts of (below, bins..., above) in float64."""
    inside = torch.histc(values, bins=bins, min=low, max=high).double().cpu()
    above = (values > high).sum().double().cpu()
    below = values.numel() - inside.sum() - above
    return torch.cat([below[None], inside, above[None]])
