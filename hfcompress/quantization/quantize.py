"""``quantize``: one call for every engine."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfcompress.architectures import compressible_modules, select_modules
from hfcompress.checkpoint.record import METHOD
from hfcompress.errors import CalibrationError, ModelError, TargetError
from hfcompress.quantization.abilities import slow_int8
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import cover
from hfcompress.quantization.quantized import QuantizedModel

Batch = Mapping[str, Tensor]


class HasBatches(Protocol):
    """A calibration set, such as `hfcompress.Calibration`."""

    @property
    def batches(self) -> Sequence[Batch]:
        """Dicts of tensors, as the model is called."""
        ...


def quantize(
    model: PreTrainedModel,
    config: QuantizationConfig | None = None,
    calibration: HasBatches | Sequence[Batch] | None = None,
) -> QuantizedModel:
    """Quantize a classifier::

        small = quantize(model, QuantizationConfig(backend="onnxruntime"))
        small.save("sentiment", tokenizer)
        hfcompress.load("sentiment")("a gripping film")

    Args:
        model: fp32, on the CPU, shrunk or pruned or neither; it is left as it was.
        config: which engine and how; onnxruntime's dynamic int8 by default.
        calibration: batches as the model is called with, for static mode; labels are left aside.

    Returns:
        The quantized model, with the report of what was quantized and what was not.

    Raises:
        MissingExtraError: the engine is not installed; the message holds the pip command.
        TargetError: there is no Linear, or an ``exclude`` pattern matches nothing.
        CalibrationError: static mode and no calibration batches.
        ModelError: the model is quantized already, or the engine refuses it.
    """
    config = config or QuantizationConfig()
    check_quantizable(model, config)
    batches = _arrays(calibration)
    if config.needs_calibration and not batches:
        raise CalibrationError(
            f"backend {config.backend} in mode {config.resolved_mode} needs calibration data: "
            f"give batches of examples, or mode: dynamic where the backend has it"
        )
    backend: Any = importlib.import_module(f"hfcompress.quantization.backends.{config.backend}")
    excluded = _excluded(model, config)
    training = model.training
    model.train(False)
    try:
        engine, names = backend.quantize_model(model, config, excluded, batches)
    finally:
        model.train(training)
    coverage = cover(model, names, partial(backend.why_not, config=config), excluded)
    slow = slow_int8()
    return QuantizedModel(engine, config, coverage, model, (slow,) if slow else ())


def check_quantizable(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Refuse before anything runs.

    Raises:
        TargetError, ModelError: as `quantize`.
    """
    products = [m for m in compressible_modules(model).values() if not isinstance(m, nn.Conv2d)]
    if not products:
        raise TargetError(
            f"{type(model).__name__} has no Linear to quantize; "
            f"convolutions need backend: onnxruntime and mode: static"
            if compressible_modules(model) and config.resolved_mode != "static"
            else f"{type(model).__name__} has no Linear to quantize"
        )
    settings: Any = getattr(model.config, "quantization_config", None)
    if settings is not None:
        plain = settings if isinstance(settings, dict) else settings.to_dict()
        if plain.get("quant_method") != METHOD or plain.get("int8"):
            raise ModelError(
                f"{type(model).__name__} is quantized already; quantize the fp32 model"
            )
    if next(model.parameters()).dtype != torch.float32:
        raise ModelError(
            f"{type(model).__name__} holds {next(model.parameters()).dtype}; "
            f"load it with dtype=torch.float32"
        )
    _excluded(model, config)


def _excluded(model: nn.Module, config: QuantizationConfig) -> set[str]:
    return set(select_modules(model, config.exclude)) if config.exclude else set()


def _arrays(calibration: HasBatches | Sequence[Batch] | None) -> list[dict[str, Any]]:
    if calibration is None:
        return []
    batches = calibration if isinstance(calibration, Sequence) else calibration.batches
    return [
        {key: value.cpu().numpy() for key, value in batch.items() if key != "labels"}
        for batch in batches
    ]


def is_product(module: nn.Module) -> bool:
    """Whether a module is one matrix product: a Linear or a Conv1D."""
    return isinstance(module, (nn.Linear, Conv1D))
