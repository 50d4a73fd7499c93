"""Affine quantization of weights: q = round(w / scale) + zero point, for 2 to 8 bits.

Jacob et al. 2018 (1712.05877). Symmetric: the zero point is 0 and the range of integers is
[-(2^(b-1) - 1), 2^(b-1) - 1]. Affine: the range of the values, widened to hold 0, is spread over
all 2^b integers [-2^(b-1), 2^(b-1) - 1], so that 0 is exact. Either way a value comes back at
most half a step (scale / 2) from where it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hfcompress.errors import ConfigError, ModelError

BITS = range(2, 9)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as integers.

    Attributes:
        values: int8, the weight's shape, whatever the number of bits.
        scale: fp32, the size of one step: a number, or one for each channel.
        zero_point: int8, the integer that represents 0, shaped as ``scale``.
        bits: how many the integers need, 2 to 8.
        axis: the dimension of the channels; None for one scale for the whole weight.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    axis: int | None

    @property
    def bytes(self) -> int:
        """Bytes of integers, scales and zero points, the integers packed without gaps."""
        return math.ceil(self.values.numel() * self.bits / 8) + 5 * self.scale.numel()


@dataclass(frozen=True)
class RoundTripError:
    """What quantizing a weight and taking it back changes.

    Attributes:
        largest: of the absolute errors.
        root_mean_square: of the errors.
        relative: the error's norm by the weight's; 0 for a weight of zeros.
        steps: the largest error in steps of its channel; at most one half.
    """

    largest: float
    root_mean_square: float
    relative: float
    steps: float


def quantize_layer_weights(
    weight: Tensor,
    bits: int = 8,
    *,
    per_channel: bool = True,
    symmetric: bool = True,
    axis: int = 0,
) -> QuantizedWeight:
    """Quantize one weight.

    Args:
        weight: floating point, any shape: outputs x inputs for an ``nn.Linear``.
        bits: 2 to 8.
        per_channel: a scale and a zero point for each index of ``axis``, not one for all.
        symmetric: zero point 0; otherwise affine, which uses lopsided ranges better.
        axis: the dimension of the channels, 0 for the outputs of a Linear or a convolution.

    Raises:
        ConfigError: bits or axis out of range.
        ModelError: no floating point, no elements, or NaN or infinity among them.
    """
    _check(weight, bits, axis if per_channel else None)
    exact = weight.detach().double()
    low, high = _range(exact, axis if per_channel else None)
    lowest, highest = _integers(bits, symmetric)
    span = torch.maximum(-low, high) * 2 if symmetric else high - low
    step = span / (highest - lowest)
    # A channel of zeros needs some step; the smallest normal number keeps the quotient finite.
    tiny = torch.finfo(torch.float32).tiny
    scale = torch.where(step > 0, step.clamp_min(tiny), torch.ones_like(step)).float()
    zero = torch.zeros_like(low) if symmetric else lowest - low / scale.double()
    zero = zero.round().clamp(lowest, highest)
    shape = _broadcast(weight, axis if per_channel else None)
    values = (exact / scale.double().view(shape)).round() + zero.view(shape)
    return QuantizedWeight(
        values.clamp(lowest, highest).to(torch.int8),
        scale,
        zero.to(torch.int8),
        bits,
        axis if per_channel else None,
    )


def dequantize_layer_weights(quantized: QuantizedWeight) -> Tensor:
    """The dequantized weight, fp32: (q - zero point) * scale."""
    shape = _broadcast(quantized.values, quantized.axis)
    steps = quantized.values.float() - quantized.zero_point.float().view(shape)
    return steps * quantized.scale.view(shape)


def round_trip_error(weight: Tensor, quantized: QuantizedWeight) -> RoundTripError:
    """The difference between a weight and its dequantized form.

    Args:
        weight: the one that was quantized.
        quantized: the same in integers.
    """
    exact = weight.detach().double()
    scale = quantized.scale.double().view(_broadcast(weight, quantized.axis))
    zero = quantized.zero_point.double().view(_broadcast(weight, quantized.axis))
    error = (quantized.values.double() - zero) * scale - exact
    norm = float(exact.norm())
    return RoundTripError(
        largest=float(error.abs().max()),
        root_mean_square=float(error.square().mean().sqrt()),
        relative=float(error.norm()) / norm if norm else 0.0,
        steps=float((error / scale).abs().max()),
    )


def _check(weight: Tensor, bits: int, axis: int | None) -> None:
    if bits not in BITS:
        raise ConfigError(f"bits must be from {BITS[0]} to {BITS[-1]}, not {bits!r}")
    if not weight.is_floating_point() or not weight.numel():
        raise ModelError(
            f"a weight of type {weight.dtype} and shape {list(weight.shape)} cannot be quantized; "
            f"give floating-point numbers"
        )
    if axis is not None and not -weight.dim() <= axis < weight.dim():
        raise ConfigError(f"axis {axis} does not exist in a weight of {weight.dim()} dimensions")
    if not bool(torch.isfinite(weight).all()):
        raise ModelError("the weight contains NaN or infinity; load or train the model again")


def _integers(bits: int, symmetric: bool) -> tuple[int, int]:
    half = 2 ** (bits - 1)
    return (1 - half, half - 1) if symmetric else (-half, half - 1)


def _range(weight: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each channel, 0 always between them."""
    if axis is None:
        low, high = torch.aminmax(weight)
    else:
        low, high = torch.aminmax(weight.movedim(axis, 0).flatten(1), dim=1)
    return low.clamp_max(0), high.clamp_min(0)


def _broadcast(weight: Tensor, axis: int | None) -> list[int]:
    """The shape that sets a number for each channel beside the weight."""
    shape = [1] * weight.dim()
    if axis is not None:
        shape[axis] = weight.shape[axis]
    return shape
