"""Which weights to drop: from importance scores to masks. Tensors in, tensors out.

A mask is a bool tensor, True where a weight is kept. Every choice is exact (the number of dropped
weights is the number asked for) and deterministic (equal scores are dropped in index order).

Large populations are handled by numpy in slices that fit the processor's cache: one thread then
runs at the memory's speed, and a busy machine does not make it wait for a second one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Number = float | int

_SLICE = 1 << 16
"""Values handled at once: small enough that temporaries stay in the processor's cache."""
_BITS = {2: (torch.int16, 0x7FFF), 4: (torch.int32, 0x7FFFFFFF), 8: (torch.int64, (1 << 63) - 1)}
"""Bytes of a float -> the integer of that size, and the mask that clears its sign bit."""


@dataclass(frozen=True)
class Cut:
    """Drop every value below ``value``, and the first ``ties`` of those equal to it (None: all)."""

    value: float | int
    ties: int | None


def kth_smallest(
    arrays: Sequence[Array], count: int, bits: int | None = None, limit: int | None = None
) -> Cut:
    """The exact threshold that drops the ``count`` smallest values of several arrays.

    A strided sample brackets the threshold; one pass counts what lies below the bracket and
    collects the few values inside, from which the right one is selected. No array is copied
    whole and nothing is sorted (Floyd and Rivest, "Expected time bounds for selection", 1975).

    Args:
        arrays: one-dimensional arrays without NaN; together they are one population.
        count: how many to drop, from 1 to the number of all values.
        bits: for integer arrays, a mask that is applied to each value first.
        limit: every value must be smaller.

    Raises:
        ValueError: a value reaches the limit.
    """
    total = sum(len(array) for array in arrays)
    # n^(2/3) samples balance the sample against what it leaves to be searched. An odd step visits
    # all columns of a matrix with an even number of them.
    step = int(total ** (1 / 3)) | 1
    sample = np.concatenate([_masked(array[::step], bits) for array in arrays])
    share = count / total
    margin = 4 * (share * (1 - share) * len(sample)) ** 0.5 + 1  # four standard errors
    while True:
        low, high = _order_statistics(sample, share * len(sample), margin)
        below, inside = _bracket(arrays, bits, low, high, limit)
        if below < count <= below + len(inside):
            break
        margin *= 4  # an unlucky sample costs another pass, never a wrong answer
    place = count - below - 1
    value = np.partition(inside, place)[place]
    ties = count - below - int(np.count_nonzero(inside < value))
    return Cut(value.item(), None if ties == np.count_nonzero(inside == value) else ties)


def layer_mask(scores: Tensor, drop: int) -> Tensor:
    """Drop the ``drop`` lowest scores of one tensor.

    Args:
        scores: floats of any shape, without NaN.
        drop: how many, from 0 to all.
    """
    return global_masks([scores], drop)[0]


def global_masks(scores: Sequence[Tensor], drop: int) -> list[Tensor]:
    """Drop the ``drop`` lowest scores of all tensors together; one mask for each tensor."""
    if drop <= 0:
        return [torch.ones_like(tensor, dtype=torch.bool) for tensor in scores]
    arrays = [_floats(tensor) for tensor in scores]
    cut = kth_smallest(arrays, drop)
    masks = []
    for tensor, array in zip(scores, arrays, strict=True):
        keep, cut = _kept(array, cut)
        masks.append(torch.from_numpy(keep).view(tensor.shape).to(tensor.device))
    return masks


def magnitude_cut(weights: Sequence[Tensor], drop: int) -> Cut:
    """The threshold that drops the ``drop`` smallest magnitudes of several tensors together.

    A float without its sign bit orders like an integer, so the cut is taken on the bits: no
    scores are built.

    Args:
        weights: floats of one dtype and any shapes, dense in memory.
        drop: how many, from 1 to all.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    integer, bits = _BITS[weights[0].element_size()]
    infinity = torch.tensor(torch.inf, dtype=weights[0].dtype).view(integer)
    arrays = [weight.cpu().view(-1).view(integer).numpy() for weight in weights]
    return kth_smallest(arrays, drop, bits, int(infinity))


def cut_magnitudes_(weights: Sequence[Tensor], cut: Cut) -> list[int]:
    """Set to zero, in place, what a `magnitude_cut` drops.

    Returns:
        how many entries of each tensor are zero afterwards.
    """
    integer, bits = _BITS[weights[0].element_size()]
    arrays = [weight.cpu().view(-1).view(integer).numpy() for weight in weights]
    scratch = _scratch(arrays)
    zeros = []
    for weight, array in zip(weights, arrays, strict=True):
        kept = 0
        for part in _slices(array):
            keep, cut = _kept(_masked(part, bits, scratch), cut)
            np.multiply(part, keep, out=part)
            kept += int(np.count_nonzero(keep))
        # With a cut at zero, kept entries may be zeros themselves.
        zeros.append(len(array) - kept if cut.value else count_zeros(weight))
        if weight.device.type != "cpu":
            weight.copy_(torch.from_numpy(array).view(weight.dtype).view(weight.shape))
    return zeros


def count_zeros(tensor: Tensor) -> int:
    """How many entries of a tensor are zero."""
    return sum(len(part) - int(np.count_nonzero(part != 0)) for part in _slices(_floats(tensor)))


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    return all(bool(np.isfinite(part).all()) for part in _slices(_floats(tensor)))


def _kept(array: Array, cut: Cut) -> tuple[npt.NDArray[np.bool_], Cut]:
    """The mask of an array, and the cut for the arrays after it: with the ties that are left."""
    keep = array > cut.value
    if cut.ties is None:
        return keep, cut
    equal = np.flatnonzero(array == cut.value)
    keep[equal[cut.ties :]] = True
    return keep, Cut(cut.value, max(cut.ties - len(equal), 0))


def _order_statistics(
    sample: Array, rank: float, margin: float
) -> tuple[Number | None, Number | None]:
    """The sample's values at ``rank`` minus and plus ``margin``; None beyond its ends."""
    places = [int(rank - margin), int(rank + margin)]
    inner = [place for place in places if 0 <= place < len(sample)]
    ordered = np.partition(sample, inner) if inner else sample
    low, high = (ordered[place] if place in inner else None for place in places)
    return low, high


def _bracket(
    arrays: Sequence[Array],
    bits: int | None,
    low: Number | None,
    high: Number | None,
    limit: int | None,
) -> tuple[int, Array]:
    """How many values lie below ``low``, and the values from ``low`` to ``high``."""
    below, inside = 0, []
    scratch = _scratch(arrays)
    for array in arrays:
        for part in _slices(array):
            values = _masked(part, bits, scratch)
            if limit is not None and values.max() >= limit:
                raise ValueError("a value is NaN or infinite")
            if low is not None:
                under = values < low
                below += int(np.count_nonzero(under))
                within = ~under if high is None else under ^ (values <= high)
            else:
                within = np.full(len(values), True) if high is None else values <= high
            inside.append(values[within])
    return below, np.concatenate(inside)


def _slices(array: Array) -> Iterator[Array]:
    return (array[start : start + _SLICE] for start in range(0, len(array), _SLICE))


def _scratch(arrays: Sequence[Array]) -> Array:
    """Room for one slice: reused, it stays in the cache, and no page is asked of the system."""
    return np.empty(_SLICE, arrays[0].dtype)


def _masked(array: Array, bits: int | None, scratch: Array | None = None) -> Array:
    if bits is None:
        return array
    out = None if scratch is None else scratch[: len(array)]
    masked: Array = np.bitwise_and(array, array.dtype.type(bits), out=out)
    return masked


def _floats(tensor: Tensor) -> Array:
    # numpy knows no bfloat16; widening keeps every value and its order.
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    array: Array = (tensor.float() if half else tensor).detach().cpu().reshape(-1).numpy()
    return array
