"""The ``quantize`` step, and the ``qat`` step that trains a model for it."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from hfcompress.errors import ConfigError
from hfcompress.quantization.config import NOT_MEASURED, QuantizationConfig
from hfcompress.quantization.coverage import is_convolutional
from hfcompress.quantization.qat import quantizable, quantization_aware
from hfcompress.quantization.quantize import check_quantizable, quantize
from hfcompress.recipes.step_configs import QuantizationAwareConfig
from hfcompress.steps.context import Context, ModelState, StepReport
from hfcompress.steps.prune import recover
from hfcompress.steps.training import check_training


def quantize_step(
    state: ModelState, config: QuantizationConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Quantize for an engine, with training rows where the mode calibrates.

    Raises:
        ConfigError, ModelError, CalibrationError: as `quantize`.
    """
    context.progress.stage(f"quantizing: {config.backend}, {config.mode}")
    model = state.network
    calibration = None
    if calibrates(model, config) and (config.needs_calibration or context.train is not None):
        available, asked = len(context.training_rows("calibration")), config.calibration_rows
        if rows_asked(config) is None and available < asked:
            asked = available
            context.progress.note(f"quantize calibrates on all {asked} training rows")
        calibration = context.calibration(asked, config.seed)
    quantized = quantize(model, config, calibration)
    context.progress.note(quantized.coverage.sentence)
    if quantized.mixed is not None:
        context.progress.note(quantized.mixed.sentence)
    for note in quantized.notes:
        context.progress.note(note)
    details = {**quantized.to_dict()}
    details.pop("modules")
    report = StepReport(details=details)
    return state.after(config, report, quantized), report


def check_quantize(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Refuse what does not fit the model, or cannot be measured, before anything runs.

    Raises:
        ConfigError: a backend that does not run on this machine.
        TargetError, ModelError: as `quantize`.
    """
    if not config.runs_here:
        raise ConfigError(f"step quantize: {NOT_MEASURED}")
    check_quantizable(model, config)


def calibrates(model: PreTrainedModel, config: QuantizationConfig) -> bool:
    """Whether quantizing a model reads training rows, where there are any."""
    # Networks of convolutions are quantized statically by default.
    return config.needs_calibration or (config.mode == "auto" and is_convolutional(model))


def rows_asked(config: QuantizationConfig) -> int | None:
    """The number of calibration rows, or None for the default: that many or all, if fewer."""
    default = QuantizationConfig.model_fields["calibration_rows"].default
    return None if config.calibration_rows == default else config.calibration_rows


def qat_step(
    state: ModelState, config: QuantizationAwareConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Train the model in place with the arithmetic that it will be quantized to.

    Raises:
        ConfigError, TargetError: as `hfcompress.quantization.qat.FakeQuantization`.
        DataError: no training rows.
    """
    # A dense model has no zeros to keep, and may be trained all the same.
    trainable = replace(state, is_shrunk=True)
    with quantization_aware(state.network, config.quantization) as fake:
        report = recover(trainable, config, context)
    report = report.with_details(aware_modules=len(fake.modules))
    return state.after(config, report), report


def check_qat(model: PreTrainedModel, config: QuantizationAwareConfig) -> None:
    """Refuse what does not fit the model, before anything runs.

    Raises:
        ConfigError, TargetError, ModelError: as the step.
    """
    check_training(model, config)
    check_quantizable(model, config.quantization)
    quantizable(model, config.quantization)
