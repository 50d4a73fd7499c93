"""Statistics and histogram of weights, with the spike at zero kept apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfcompress.errors import ConfigError, ModelError, TargetError
from hfcompress.measure.macs import weighted_layers
from hfcompress.utils import FormerPlain, is_conv1d

CHUNK = 2**22
"""Values binned at a time: float32 counts stay exact, and copies stay small."""
SPAN = 4.0
"""The default histogram reaches this many standard deviations to either side of the mean."""


@dataclass(frozen=True)
class WeightDistribution(FormerPlain):
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

    def __repr__(self) -> str:
        return (
            f"WeightDistribution({self.count:,} weights, {self.sparsity:.1%} zero, from "
            f"{self.minimum:.3g} to {self.maximum:.3g}, std {self.std:.3g})"
        )

    @property
    def sparsity(self) -> float:
        """The fraction of exact zeros."""
        return self.zeros / self.count

    def to_dict(self) -> dict[str, Any]:
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


# Values compared at a time: what the comparison gives stays in the processor's cache.
_CHUNK = 1 << 18


def count_nonzeros(tensor: Tensor) -> int:
    """How many values are not exactly zero; a negative zero is one, NaN is none."""
    if tensor.device.type != "cpu" or tensor.dtype == torch.bfloat16:
        return int(torch.count_nonzero(tensor))
    values = tensor.detach().reshape(-1).numpy()
    parts = range(0, len(values), _CHUNK)
    return sum(int(np.count_nonzero(values[start : start + _CHUNK] != 0)) for start in parts)


SIDE = 48
"""Rows and columns of a piece at most."""
_STEPS = 127


def weight_grids(
    model: nn.Module, targets: Iterable[str] | None = None, most: int = 3
) -> list[dict[str, Any]]:
    """A corner of some layers' weights: of the first, the middle and the last.

    A matrix gives its first outputs (rows) and inputs (columns); a convolution its first filters
    as tiles of kernel height x kernel width, outputs down and inputs across (a depthwise one,
    which has one input each, row after row).

    Args:
        model: any module.
        targets: names of the layers to choose from; by default every Linear, convolution, Conv1D.
        most: how many layers.

    Returns:
        For each layer ``name``, ``shape`` of the whole weight, ``tile`` (height, width),
        ``scale`` and ``codes``: whole numbers from -127 to 127, rows of the piece, a value being
        about code * scale. Only an exact zero is 0.
    """
    layers = [
        (name, weight) for name, weight in weighted_layers(model, targets).items() if weight.numel()
    ]
    count = min(most, len(layers))
    places = [round(i * (len(layers) - 1) / max(count - 1, 1)) for i in range(count)]
    modules = dict(model.named_modules())
    found = []
    for place in dict.fromkeys(places):
        name, weight = layers[place]
        piece, tile = _piece(weight.detach().float(), is_conv1d(modules.get(name)))
        codes, scale = _codes(piece)
        found.append(
            {
                "name": name,
                "shape": list(weight.shape),
                "tile": list(tile),
                "scale": scale,
                "codes": codes,
            }
        )
    return found


def _piece(weight: Tensor, turned: bool) -> tuple[Tensor, tuple[int, int]]:
    """A matrix of at most `SIDE` rows and columns, and the size of its tiles."""
    if weight.dim() == 2:
        return (weight.t() if turned else weight)[:SIDE, :SIDE], (1, 1)
    if weight.dim() != 4:
        return weight.flatten(1)[:SIDE, :SIDE], (1, 1)
    outputs, inputs, height, width = weight.shape
    down, across = max(1, SIDE // height), max(1, SIDE // width)
    if inputs == 1:
        across = min(across, math.ceil(math.sqrt(outputs)))
        down = min(down, outputs // across)
        chosen = weight[: down * across].reshape(down, across, height, width)
    else:
        chosen = weight[:down, :across]
    grid = chosen.permute(0, 2, 1, 3).reshape(chosen.shape[0] * height, chosen.shape[1] * width)
    return grid, (height, width)


def _codes(piece: Tensor) -> tuple[list[list[int]], float]:
    largest = float(piece.abs().max())
    scale = largest / _STEPS if largest else 1.0
    rounded = (piece / scale).round()
    # What rounds to zero and is none stays apart from what is.
    kept = torch.where(rounded == 0, piece.sign(), rounded)
    return kept.to(torch.int64).tolist(), scale
