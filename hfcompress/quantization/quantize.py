"""``quantize``: one call for every engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from hfcompress.checkpoint.record import METHOD
from hfcompress.errors import (
    CalibrationError,
    HfcompressError,
    ModelError,
    TargetError,
    first_line,
)
from hfcompress.inference import Logits, dense_logits
from hfcompress.measure.environment import slow_int8
from hfcompress.measure.macs import CONVOLUTIONS, evaluation_mode, weighted_modules
from hfcompress.models.outputs import BY_TOKEN, OutputKind
from hfcompress.quantization.backends import import_backend
from hfcompress.quantization.config import MODES, QuantizationConfig
from hfcompress.quantization.coverage import (
    DYNAMIC_LEAVES_CONVOLUTIONS,
    cover,
    excluded_modules,
    is_convolutional,
    share_of_convolutions,
    without_weights,
)
from hfcompress.quantization.distance import (
    Distance,
    check_distance,
    compared_rows,
    measure_distance,
)
from hfcompress.quantization.engine import Arrays, Engine, FileEngine
from hfcompress.quantization.images import image_shape
from hfcompress.quantization.inputs import Batches, Classifier, as_batches, as_classifier
from hfcompress.quantization.mixed_precision import MixedReport, keep_most_sensitive
from hfcompress.quantization.model import QuantizedModel
from hfcompress.training.outputs import infer_task


def quantize(
    model: nn.Module,
    config: QuantizationConfig | None = None,
    calibration: Batches | None = None,
) -> QuantizedModel:
    """Quantize a model of any task that `hfcompress.tasks` serves::

        small = quantize(model, QuantizationConfig(backend="onnxruntime"))
        small.save("sentiment", tokenizer)
        hfcompress.load("sentiment")("a gripping film")

    Args:
        model: fp32, on the CPU, shrunk or pruned or neither; not changed. Any module that takes
            tensors and gives logits [batch, outputs] will do; one that is not a transformers model
            needs an example batch as ``calibration``.
        config: engine and mode; onnxruntime's dynamic int8 by default.
        calibration: batches as the model is called with, for static mode, ``mixed`` and
            ``smooth``; labels are ignored. Images must have the size of the later use.

    Returns:
        The quantized model, with a report of every module and of the distance from fp32, measured
        on calibration rows, or on random ones. Beyond a quarter of the logits' spread a note says
        so.

    Raises:
        MissingExtraError: the engine is not installed; the message holds the pip command.
        TargetError: there is nothing that the mode quantizes, or an ``exclude`` pattern matches
            nothing.
        CalibrationError: static mode, ``mixed``, ``smooth``, or ``auto`` for a network of
            convolutions, and no calibration batches; or batches that the model cannot read.
        ModelError: the model is quantized already, the engine fails on it, or the quantized model
            is as far from fp32 as the logits' spread.
    """
    config = config or QuantizationConfig()
    check_quantizable(model, config)
    batches = as_batches(calibration, model)
    given, model = model, as_classifier(model, batches)
    config = _with_mode(config, model, batches)
    if config.needs_calibration and not batches:
        static = config.resolved_mode == "static"
        raise CalibrationError(
            f"backend {config.backend} in mode {config.resolved_mode} needs calibration data: "
            f"give batches of examples, or mode: dynamic where the backend has it"
            if static
            else f"{config.reads_rows} needs calibration data: give batches of examples, or leave "
            f"{config.reads_rows} out"
        )
    kind = infer_task(model)
    backend = import_backend(config.backend)
    excluded, empty = excluded_modules(model, config), without_weights(model)

    def make(kept: Collection[str]) -> tuple[Engine, set[str]]:
        return backend.quantize_model(model, config, excluded | empty | set(kept), batches)

    mixed = None
    with evaluation_mode(given):
        rows = compared_rows(model, batches)
        dense = _dense(model, rows)
        if config.mixed is None:
            engine, names = make(())
        else:
            (engine, names), mixed = keep_most_sensitive(model, config, batches, make)
        # Who states how much may be lost (mixed) gets a model within that, whatever is lost.
        distance: Distance | None = None
        lost: tuple[str, ...] = (_RUNS_ELSEWHERE,)
        if config.runs_here:
            distance = measure_distance(engine, rows, dense, bool(batches), kind)
            lost = check_distance(model, config, distance, rows, mixed is not None and mixed.holds)
    why = dict.fromkeys(empty, "shrinking left it no weights")
    why |= dict.fromkeys(excluded, "excluded by the config")
    why |= dict.fromkeys(mixed.names if mixed else (), "kept in fp32 by mixed precision")
    coverage = cover(
        model,
        names,
        partial(backend.why_not, config=config),
        why,
        image_shape(model, batches),
        folds_norms=isinstance(engine, FileEngine),
    )
    if config.resolved_mode != "none" and mixed is None and not names:
        reasons = "; ".join(
            f"{count} modules: {reason}" for reason, count in coverage.reasons.items()
        )
        raise TargetError(
            f"backend {config.backend} in mode {config.resolved_mode} quantizes nothing of "
            f"{type(model).__name__} ({reasons}); choose another backend or mode"
        )
    notes = (*_notes(model, config), *_mixed_notes(mixed), *lost)
    outputs = dense[0].shape[1 if kind in ("spans", "pixels") else -1]
    return QuantizedModel(engine, config, coverage, given, notes, mixed, distance, outputs)


_RUNS_ELSEWHERE = (
    "a Core ML package runs on Apple's systems alone, so it was not run here and its distance from "
    "fp32 was not measured"
)
_DIMENSIONS: dict[OutputKind, int] = {**dict.fromkeys(BY_TOKEN, 3), "pixels": 4}
"""Of logits whose kind has not a row of them for each example."""


def _dense(model: Classifier, rows: Sequence[Arrays]) -> list[Logits]:
    """Return the fp32 logits of each batch, [rows, outputs], or by token as the task has them.

    Raises:
        CalibrationError: the model cannot read the rows.
        ModelError: it gives no logits, or other ones than a row for each example.
    """
    name = type(model).__name__
    try:
        dense = [dense_logits(model, batch) for batch in rows]
    except HfcompressError:
        raise
    except Exception as error:  # whatever a forward raises
        raise CalibrationError(
            f"{name} cannot read the calibration rows ({', '.join(rows[0])}): {first_line(error)}"
        ) from error
    dimensions = _DIMENSIONS.get(infer_task(model), 2)
    if any(logits.ndim != dimensions for logits in dense):
        raise ModelError(
            f"{name} gives logits of the shape {list(dense[0].shape)}; quantize takes models with "
            f"one row of logits for each example"
        )
    if not all(np.isfinite(logits).all() for logits in dense):
        raise ModelError(f"{name} gives logits that are not finite in fp32; train or load it again")
    return dense


def _mixed_notes(mixed: MixedReport | None) -> Iterator[str]:
    if mixed is not None and not mixed.holds:
        yield (
            f"mixed precision exceeds its limits: with {mixed.kept} modules in fp32 the KL "
            f"divergence is {mixed.measured.kl:.2g} and {mixed.measured.changed:.2%} of the "
            f"classes change"
        )


def check_quantizable(model: nn.Module, config: QuantizationConfig) -> None:
    """Refuse what cannot be quantized, before anything runs.

    Raises:
        TargetError, ModelError: as `quantize`.
    """
    modules = weighted_modules(model).values()
    if not modules:
        raise TargetError(f"{type(model).__name__} has no Linear or convolution to quantize")
    takes_convolutions = config.resolved_mode in ("static", "none") or _may_be_static(config)
    if not takes_convolutions and all(isinstance(module, CONVOLUTIONS) for module in modules):
        raise TargetError(
            f"{type(model).__name__} has no Linear to quantize, and "
            f"{DYNAMIC_LEAVES_CONVOLUTIONS}, in backend: onnxruntime or openvino"
        )
    settings = getattr(getattr(model, "config", None), "quantization_config", None)
    if settings is not None:
        plain = settings if isinstance(settings, dict) else settings.to_dict()
        if plain.get("quant_method") != METHOD or plain.get("int8"):
            raise ModelError(
                f"{type(model).__name__} is quantized already; quantize the fp32 model"
            )
    if next(model.parameters()).dtype != torch.float32:
        raise ModelError(
            f"{type(model).__name__} has weights of {next(model.parameters()).dtype}; "
            f"load it with dtype=torch.float32"
        )
    excluded_modules(model, config)


def _may_be_static(config: QuantizationConfig) -> bool:
    """Return whether ``auto`` may resolve to static."""
    return config.mode == "auto" and "static" in MODES[config.backend]


def _with_mode(
    config: QuantizationConfig, model: nn.Module, batches: Sequence[Arrays]
) -> QuantizationConfig:
    """Return the config with ``auto`` resolved for this model: static if it is convolutional.

    Raises:
        CalibrationError: a convolutional model without calibration data.
    """
    if not _may_be_static(config) or not is_convolutional(model):
        return config
    if not batches:
        raise CalibrationError(
            f"{type(model).__name__} keeps {share_of_convolutions(model):.0%} of its weights in "
            f"convolutions, and {DYNAMIC_LEAVES_CONVOLUTIONS}: give batches of examples (in a "
            f"recipe, set mode: static), or mode: dynamic for its Linears alone"
        )
    return config.replace(mode="static")


def _notes(model: nn.Module, config: QuantizationConfig) -> tuple[str, ...]:
    """Return warnings about this processor and this model."""
    slow = slow_int8()
    notes = [slow] if slow else []
    # Phone engines have dynamic convolutions, too.
    fixed = config.backend not in ("executorch", "litert")
    if config.resolved_mode == "dynamic" and fixed and is_convolutional(model):
        share = share_of_convolutions(model)
        notes.append(
            f"{share:.0%} of the weights are convolutions and stay in fp32: "
            f"{DYNAMIC_LEAVES_CONVOLUTIONS}, in backend: onnxruntime or openvino"
        )
    return tuple(notes)
