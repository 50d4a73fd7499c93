"""The ``qat`` step: train a model with the arithmetic that it will be quantized to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from hfcompress.quantization.qat import quantizable, quantization_aware
from hfcompress.quantization.quantize import check_quantizable
from hfcompress.recipe.aware_config import QuantizationAwareConfig
from hfcompress.steps.context import Context
from hfcompress.steps.prune import check_training, recover


def aware(
    model: PreTrainedModel, config: QuantizationAwareConfig, context: Context
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train in place.

    Raises:
        ConfigError, TargetError: as `hfcompress.quantization.qat.FakeQuantization`.
        DataError: no training rows.
    """
    # A dense model has no zeros to keep, and may be trained all the same.
    context = replace(context, shrunk=True)
    with quantization_aware(model, config.quantization) as fake:
        model, done = recover(model, config, context)
    return model, {**done, "aware_modules": len(fake.modules)}


def check_aware(model: PreTrainedModel, config: QuantizationAwareConfig) -> None:
    """Refuse what does not fit the model, before anything runs.

    Raises:
        ConfigError, TargetError, ModelError: as the step.
    """
    check_training(model, config)
    check_quantizable(model, config.quantization)
    quantizable(model, config.quantization)
