"""The ``qat`` step: train a model with the arithmetic that it will be quantized to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import is_convolutional
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.qat import quantizable, quantization_aware
from hfcompress.quantization.quantize import check_quantizable, quantize
from hfcompress.recipes.step_configs import (
    QuantizationAwareConfig,
)
from hfcompress.steps.context import Context, Done
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


def quantize_step(
    model: PreTrainedModel, config: QuantizationConfig, context: Context
) -> tuple[QuantizedModel, Done]:
    """Quantize for an engine, with training rows where the mode calibrates."""
    context.progress.stage(f"quantizing: {config.backend}, {config.mode}")
    # Networks of convolutions are quantized statically by default.
    wanted = config.needs_calibration or (
        config.mode == "auto" and is_convolutional(model) and context.train is not None
    )
    calibration = context.calibration(config.calibration_rows, config.seed) if wanted else None
    quantized = quantize(model, config, calibration)
    context.progress.note(quantized.coverage.sentence)
    if quantized.mixed is not None:
        context.progress.note(quantized.mixed.sentence)
    for note in quantized.notes:
        context.progress.note(note)
    done = quantized.to_dict()
    done.pop("modules")
    return quantized, done
