"""How many weights each layer loses, so that all together lose the number asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

IntArray = npt.NDArray[np.intp]
FloatArray = npt.NDArray[np.float64]
Counts = dict[str, int]
"""Weights to drop, by layer."""

_BUCKETS = 2000
"""Units into which the dynamic program divides all weights."""


def spread_to_total(counts: Mapping[str, float], sizes: Mapping[str, int], total: int) -> Counts:
    """Round counts so that they sum to ``total``, each between 0 and its layer's size.

    A difference is spread in proportion to what the layers keep (or, if there are too many, drop).
    """
    clipped = {name: min(max(counts[name], 0.0), float(sizes[name])) for name in sizes}
    excess = total - sum(clipped.values())
    room = {name: sizes[name] - clipped[name] if excess > 0 else clipped[name] for name in sizes}
    all_room = sum(room.values())
    share = excess / all_room if all_room else 0.0
    exact = {name: clipped[name] + share * room[name] for name in sizes}
    rounded = {name: int(value) for name, value in exact.items()}
    # Largest remainders first; equal ones in layer order.
    by_rest = sorted(sizes, key=lambda name: rounded[name] - exact[name])
    missing = total - sum(rounded.values())
    for name in by_rest:
        if missing > 0 and rounded[name] < sizes[name]:
            rounded[name] += 1
            missing -= 1
    return rounded


def outlier_share(scores: Tensor, multiple: float) -> float:
    """The share of scores above ``multiple`` times their mean (OWL's outlier ratio).

    (Yin et al. 2024, arXiv 2310.05175.)

    Args:
        scores: Wanda scores of one layer.
        multiple: M of the paper, 5 to 10.
    """
    return float((scores > multiple * scores.mean()).float().mean())


def owl(
    outliers: Mapping[str, float], sizes: Mapping[str, int], total: int, spread: float
) -> Counts:
    """Layers with more outliers lose less, at most ``spread`` away from the mean sparsity.

    Args:
        outliers: outlier share of each layer, from `outlier_share`.
        sizes: weights of each layer.
        total: weights to drop in all.
        spread: lambda of the paper: largest distance of a layer's sparsity from the mean.
    """
    values = np.array([outliers[name] for name in sizes])
    extent = float(np.ptp(values)) or 1.0
    offsets = (values - values.min()) / extent * 2 * spread
    offsets -= offsets.mean()
    sparsity = total / sum(sizes.values())
    counts = {
        name: (sparsity - offset) * sizes[name] for name, offset in zip(sizes, offsets, strict=True)
    }
    return spread_to_total(counts, sizes, total)


def finer(
    levels: Sequence[float], errors: Mapping[str, Sequence[float]], highest: float
) -> tuple[list[float], dict[str, list[float]]]:
    """An error table at steps of 0.01 up to ``highest``, interpolated between its levels.

    Returns:
        the sparsities, and each layer's errors at them.
    """
    fine = [step / 100 for step in range(int(highest * 100 + 1e-9) + 1)]
    table = {name: np.interp(fine, levels, values).tolist() for name, values in errors.items()}
    return fine, table


def optimal(
    errors: Mapping[str, Sequence[float]],
    levels: Sequence[float],
    sizes: Mapping[str, int],
    total: int,
) -> Counts:
    """The sparsities of least summed error that drop ``total`` weights, by dynamic programming.

    (Frantar and Alistarh 2022, SPDY, arXiv 2201.13096.)

    Args:
        errors: for each layer its error at each level.
        levels: sparsities, ascending, the first 0.
        sizes: weights of each layer.
        total: weights to drop in all.
    """
    if total <= 0:
        return dict.fromkeys(sizes, 0)
    goal = min(_BUCKETS, total)
    unit = total / goal
    best = np.full(goal + 1, np.inf)
    best[0] = 0.0
    steps: list[tuple[IntArray, IntArray]] = []
    for name, size in sizes.items():
        gains = [min(int(level * size / unit), goal) for level in levels]
        best, level_at, parent = _one_layer(best, gains, errors[name])
        steps.append((level_at, parent))
    place = goal if np.isfinite(best[goal]) else int(np.flatnonzero(np.isfinite(best))[-1])
    counts: dict[str, float] = {}
    for (name, size), (level_at, parent) in zip(
        reversed(list(sizes.items())), reversed(steps), strict=True
    ):
        counts[name] = levels[int(level_at[place])] * size
        place = int(parent[place])
    return spread_to_total(counts, sizes, total)


def _one_layer(
    best: FloatArray, gains: Sequence[int], errors: Sequence[float]
) -> tuple[FloatArray, IntArray, IntArray]:
    """One step of the dynamic program.

    Args:
        best: least error so far for each number of units dropped; the last entry is for the
            goal and any number above it.
        gains: units that this layer drops at each level.
        errors: its error at each level.

    Returns:
        the new least errors, and for each the level chosen and the place it came from.
    """
    goal = len(best) - 1
    new = np.full(goal + 1, np.inf)
    level_at = np.zeros(goal + 1, dtype=np.intp)
    parent = np.zeros(goal + 1, dtype=np.intp)
    for level, (gain, error) in enumerate(zip(gains, errors, strict=True)):
        origin = np.arange(goal + 1 - gain)
        candidate = best[origin] + error
        beyond = goal - gain + int(best[goal - gain :].argmin())
        origin[-1], candidate[-1] = beyond, best[beyond] + error
        better = candidate < new[gain:]
        new[gain:][better] = candidate[better]
        level_at[gain:][better] = level
        parent[gain:][better] = origin[better]
    return new, level_at, parent
