"""Quantized forms of `text_model` that several tests compare; each is made once a session."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from hfcompress import Calibration
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.quantize import quantize
from tests.tiny_models import text_batches, text_model


def quantized(**options: Any) -> QuantizedModel:
    """`text_model`, quantized with `text_batches` at hand; to be looked at, not changed."""
    config = QuantizationConfig(**options)
    pytest.importorskip(config.backend)  # each is called what its package is
    return _quantized(config)


@functools.cache
def _quantized(config: QuantizationConfig) -> QuantizedModel:
    return quantize(text_model(), config, Calibration(text_batches()))
