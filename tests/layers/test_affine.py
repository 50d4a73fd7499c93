"""Affine quantization against its definition, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfcompress.errors import ConfigError, ModelError
from hfcompress.layers.affine import (
    dequantize_layer_weights,
    quantize_layer_weights,
    round_trip_error,
)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Matrices of lively, tiny, huge, lopsided and constant rows."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    numbers = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-4, 4, width=32) | st.just(0.0)
    values = draw(st.lists(numbers, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values).view(rows, columns) + draw(st.sampled_from([0.0, 3.0]))


@given(weights(), st.integers(2, 8), st.booleans(), st.booleans(), st.integers(0, 1))
@settings(deadline=None, max_examples=150)
def test_a_value_comes_back_within_half_a_step(
    weight: Tensor, bits: int, per_channel: bool, symmetric: bool, axis: int
) -> None:
    found = quantize_layer_weights(
        weight, bits, per_channel=per_channel, symmetric=symmetric, axis=axis
    )
    shape = [1, 1]
    if per_channel:
        shape[axis] = -1
    scale, zero = found.scale.double().view(shape), found.zero_point.double().view(shape)
    back = (found.values.double() - zero) * scale
    # fp32 scales are rounded, by 2^-24 of up to 255 steps.
    assert bool(((back - weight.double()).abs() <= scale * (0.5 + 2e-5)).all())
    assert int(found.values.max()) - int(found.values.min()) < 2**bits
    error = round_trip_error(weight, found)
    assert error.largest == float((back - weight.double()).abs().max())
    assert error.steps <= 0.5 + 2e-5
    torch.testing.assert_close(dequantize_layer_weights(found), back.float())


@given(weights(), st.booleans())
@settings(deadline=None, max_examples=50)
def test_zero_stays_zero(weight: Tensor, symmetric: bool) -> None:
    weight[0, 0] = 0
    found = quantize_layer_weights(weight, 4, symmetric=symmetric)
    assert dequantize_layer_weights(found)[0, 0] == 0
    assert not symmetric or not found.zero_point.any()


def test_numbers_by_hand() -> None:
    weight = torch.tensor([[-1.0, 0.5, 1.27], [0.0, 1.0, 3.0]])
    one = quantize_layer_weights(weight, per_channel=False)
    assert one.values.tolist() == [[-42, 21, 54], [0, 42, 127]]
    assert float(one.scale) == pytest.approx(3 / 127)
    each = quantize_layer_weights(weight)
    assert each.values.tolist() == [[-100, 50, 127], [0, 42, 127]]
    assert each.scale.tolist() == pytest.approx([0.01, 3 / 127])
    affine = quantize_layer_weights(weight, 2, symmetric=False)
    assert affine.scale.tolist() == pytest.approx([2.27 / 3, 1.0])
    assert affine.zero_point.tolist() == [-1, -2]
    assert affine.values.tolist() == [[-2, 0, 1], [-2, -1, 1]]


def test_options_do_what_they_are_for() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 64) * torch.logspace(-2, 1, 8)[:, None]
    lopsided = torch.rand(8, 64) + 0.1
    errors = [
        round_trip_error(weight, quantize_layer_weights(weight, bits)).relative
        for bits in range(2, 9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 < 0.3 < errors[0]
    assert errors[-1] < _relative(weight, per_channel=False)
    assert _relative(lopsided, symmetric=False) < 0.6 * _relative(lopsided)


def _relative(weight: Tensor, **options: bool | int) -> float:
    found = quantize_layer_weights(weight, **options)  # type: ignore[arg-type]
    return round_trip_error(weight, found).relative


def test_the_axis_says_where_the_channels_are() -> None:
    weight = torch.randn(3, 5)
    across = quantize_layer_weights(weight.t(), 5, axis=1)
    along = quantize_layer_weights(weight, 5, axis=0)
    assert torch.equal(across.values.t(), along.values)
    assert torch.equal(across.scale, along.scale)
    assert not torch.equal(quantize_layer_weights(weight, 5, axis=1).values, along.values)


def test_bytes_count_packed_integers_and_their_scales() -> None:
    weight = torch.randn(3, 7)
    assert quantize_layer_weights(weight, 8).bytes == 21 + 3 * 5
    assert quantize_layer_weights(weight, 4, per_channel=False).bytes == math.ceil(21 / 2) + 5


def test_zeros_have_no_error() -> None:
    error = round_trip_error(torch.zeros(2, 3), quantize_layer_weights(torch.zeros(2, 3)))
    assert (error.largest, error.relative, error.steps) == (0, 0, 0)


@pytest.mark.parametrize(
    ("weight", "options", "error", "message"),
    [
        (torch.ones(2, 2), {"bits": 9}, ConfigError, "bits must be from 2 to 8, not 9"),
        (torch.ones(2, 2), {"bits": 1}, ConfigError, "bits must be from 2 to 8, not 1"),
        (torch.ones(2, 2), {"axis": 2}, ConfigError, "axis 2 does not exist"),
        (torch.ones(2, 2, dtype=torch.int8), {}, ModelError, "give floating-point numbers"),
        (torch.empty(0, 2), {}, ModelError, r"shape \[0, 2\] cannot be quantized"),
        (torch.tensor([[1.0, math.nan]]), {}, ModelError, "contains NaN or infinity"),
    ],
)
def test_bad_input(
    weight: Tensor, options: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quantize_layer_weights(weight, **options)  # type: ignore[arg-type]
