"""Fake quantization: fp32 numbers that lie where an engine's integers would put them.

Jacob et al. 2018 (1712.05877). A value is rounded to the grid of its integers and stays fp32; the
gradient passes as if nothing had been rounded (the straight-through estimator of 1308.3432), so
that weights learn what rounding does to them. Steps follow the largest value, as the engines
have it, so nothing is cut off and nothing else must be learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hfcompress.quantization.config import QuantizationConfig

Activations = Literal["none", "tensor", "token", "static"]
# Weights that share a scale in torchao's 4 bits.
_GROUP = 32


@dataclass(frozen=True)
class Arithmetic:
    """Where an engine puts the numbers of a product.

    Attributes:
        activations: ``tensor``: unsigned and affine, the range of each batch's tensor; ``token``:
            signed and symmetric, the range of each row; ``static``: as ``tensor``, with the range
            of calibration data; ``none``: not quantized.
        bits: of the weights.
        per_channel: a step for each output, not one for the weight.
        table_bits: of embedding tables; None where they stay in fp32.
        convolutions: they are quantized, too.
        group: inputs of an output that share a step; None for all of them.
    """

    activations: Activations
    bits: int = 8
    per_channel: bool = True
    table_bits: int | None = None
    convolutions: bool = False
    group: int | None = None


def arithmetic_of(config: QuantizationConfig) -> Arithmetic:
    """The arithmetic of a config's backend and mode.

    OpenVINO's weights and ranges are corrected by NNCF besides, which is not imitated: it loses
    less than this shows.
    """
    mode = config.resolved_mode
    kinds: dict[str, Activations] = {"static": "static", "weight-only": "none", "none": "none"}
    dynamic: Activations = "token" if config.backend == "torchao" else "tensor"
    tables = config.backend in ("onnxruntime", "openvino") and config.embeddings
    bits = config.bits - 1 if config.reduce_range else config.bits
    return Arithmetic(
        activations=kinds.get(mode, dynamic),
        bits=bits,
        per_channel=config.per_channel,
        table_bits=config.embedding_bits if tables else None,
        convolutions=mode == "static",
        group=_GROUP if config.bits == 4 else None,
    )


def fake_weight(matrix: Tensor, arithmetic: Arithmetic) -> Tensor:
    """A weight on its grid, symmetric.

    Args:
        matrix: fp32 [outputs, inputs].
        arithmetic: bits, channels and groups.
    """
    if not arithmetic.per_channel:
        return _symmetric(matrix, arithmetic.bits, matrix.detach().abs().amax())
    group = arithmetic.group
    parts = matrix.unflatten(1, (-1, group)) if group and matrix.shape[1] % group == 0 else matrix  # type: ignore[no-untyped-call]
    largest = parts.detach().abs().amax(-1, keepdim=True)
    return _symmetric(parts, arithmetic.bits, largest).reshape(matrix.shape)


def fake_rows(rows: Tensor, bits: int) -> Tensor:
    """Rows of a table on their grids: 8 bits a row, or 4 bits and 32 neighbours; [..., columns].

    Steps are fp16. With 4 bits the step is that of the largest number, where `quantize_table`
    tries others, too.
    """
    columns = rows.shape[-1]
    group = _GROUP if bits == 4 and columns % _GROUP == 0 else columns
    parts = rows.unflatten(-1, (-1, group))  # type: ignore[no-untyped-call]
    largest = parts.detach().abs().amax(-1, keepdim=True)
    return _symmetric(parts, bits, largest, halves=True).reshape(rows.shape)


def fake_activations(inputs: Tensor, kind: Activations, range_: Tensor | None = None) -> Tensor:
    """Activations on their grid.

    Args:
        inputs: fp32, any shape; the last dimension is a token's.
        kind: see `Arithmetic`.
        range_: for ``static``, the smallest and the largest number; beyond them is cut off.
    """
    if kind == "none":
        return inputs
    if kind == "token":
        return _symmetric(inputs, 8, inputs.detach().abs().amax(-1, keepdim=True))
    found = value_range(inputs) if range_ is None else range_
    low, high = found[0], found[1]
    step = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).tiny)
    zero = (-low / step).round()
    integers = ((inputs / step).detach().round() + zero).clamp(0, 255)
    rounded = (integers - zero) * step
    if kind == "static":  # no gradient where a number is cut off
        inputs = inputs.clamp(float(low), float(high))
    return inputs + (rounded - inputs).detach()


def value_range(inputs: Tensor) -> Tensor:
    """Smallest and largest number, 0 always between them: [2]."""
    low, high = torch.aminmax(inputs.detach())
    return torch.stack([low.clamp_max(0), high.clamp_min(0)])


def _symmetric(values: Tensor, bits: int, largest: Tensor, halves: bool = False) -> Tensor:
    half = 2 ** (bits - 1) - 1
    step = largest / half
    step = step.half().to(values.dtype) if halves else step
    step = torch.where(step > 0, step, torch.ones_like(step))
    rounded = (values.detach() / step).round().clamp(-half, half) * step
    return values + (rounded - values).detach()
