"""LiteRT (TensorFlow Lite): a ``.tflite`` file, fp32, or int8 by AI Edge Quantizer."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hfcompress.errors import ModelError, first_line
from hfcompress.measure.macs import evaluation_mode
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays, check_size, thread_count, unreadable
from hfcompress.quantization.inputs import Classifier
from hfcompress.quantization.manifest import padding_id, read_manifest
from hfcompress.quantization.onnx_export import eager_attention, input_names
from hfcompress.quantization.phone import (
    FixedRow,
    RowEngine,
    as_tensors,
    check_rows,
    modules_of_sizes,
    new_folder,
    pad_id_of,
    static_rows,
)
from hfcompress.utils import require

FILE = "model.tflite"
_ROWS = 256
_EXTRA = "litert"
_PREFIX = "args_"


class LitertEngine(RowEngine):
    """Runs one ``.tflite`` file in LiteRT's interpreter, row by row.

    Args:
        path: the file.
        inputs: the model's names of its inputs; the file counts them.
        pad_id: token that texts are padded with.
        threads: of one operation; None takes torch's number.
        folder: a temporary folder that is deleted with the engine.

    Raises:
        MissingExtraError: ai-edge-litert is not installed.
        ModelError: the interpreter cannot load the file, or it has other inputs.
    """

    name = "litert"

    def __init__(
        self,
        path: Path,
        inputs: Sequence[str],
        pad_id: int = 0,
        threads: int | None = None,
        folder: Path | None = None,
    ) -> None:
        interpreter = require("ai_edge_litert.interpreter", _EXTRA)
        self.path, self.files, self.inputs, self.pad_id = path, (path,), tuple(inputs), pad_id
        self._threads = threads
        if folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        try:
            self._interpreter = interpreter.Interpreter(
                model_path=str(path), num_threads=thread_count(threads)
            )
            self._run = self._interpreter.get_signature_runner()
            details = self._run.get_input_details()
        except Exception as error:  # the interpreter's errors share no base class
            raise ModelError(f"LiteRT cannot load {path}: {first_line(error)}") from error
        self._places = {name: f"{_PREFIX}{place}" for place, name in enumerate(self.inputs)}
        if set(details) != set(self._places.values()):
            raise ModelError(
                f"{path} has the inputs {', '.join(details)} and its record names "
                f"{', '.join(self.inputs)}; save the model again"
            )
        self.shapes = {
            name: tuple(int(size) for size in details[place]["shape"])
            for name, place in self._places.items()
        }

    def options(self) -> dict[str, object]:
        """Return the names of the inputs, the padding and the threads."""
        return {"inputs": self.inputs, "pad_id": self.pad_id, "threads": self._threads}

    def run_row(self, row: Arrays) -> NDArray[np.float32]:
        """Return the logits of one row.

        Raises:
            DataError: a row that the file does not read.
        """
        try:
            found = self._run(**{self._places[name]: row[name] for name in self.inputs})
        except Exception as error:
            raise unreadable(row, error) from error
        (logits,) = found.values()
        return np.array(logits, np.float32)


def load_engine(folder: Path, threads: int | None = None) -> LitertEngine:
    """Return the engine of a saved folder.

    Raises:
        MissingExtraError, ModelError: as `LitertEngine` and `check_size`.
    """
    require("ai_edge_litert", _EXTRA)
    check_size(folder, [folder / FILE])
    manifest = read_manifest(folder)
    return LitertEngine(folder / FILE, manifest["inputs"], padding_id(manifest), threads)


def quantize_model(
    model: Classifier,
    config: QuantizationConfig,
    excluded: Collection[str],
    batches: Sequence[Arrays],
) -> tuple[LitertEngine, set[str]]:
    """Convert a model and quantize the file.

    Args:
        model: fp32.
        config: of this backend.
        excluded: not used; the file does not name modules.
        batches: their first row is the shape of the file; static mode calibrates on all.

    Returns:
        The engine, and the names of the modules that are quantized.

    Raises:
        MissingExtraError: a package is not installed.
        ModelError: torch cannot export the model, or LiteRT cannot convert it.
    """
    for package in ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"):
        require(package, _EXTRA)
    names, rows = input_names(model), static_rows(model, batches, _ROWS)
    folder = new_folder()
    try:
        with evaluation_mode(model), eager_attention(model), _quiet(), torch.no_grad():
            dense = _convert(model, names, rows[0], folder / "fp32.tflite")
        options = (names, pad_id_of(model))
        if config.resolved_mode == "none":
            path = dense.rename(folder / FILE)
            engine = LitertEngine(path, *options, folder=folder)
            check_rows(model, engine, rows)
            return engine, set()
        check_rows(model, LitertEngine(dense, *options), rows)
        with _quiet():
            _quantize(dense, folder / FILE, config, names, rows)
        dense.unlink()
        engine = LitertEngine(folder / FILE, *options, folder=folder)
        return engine, modules_of_sizes(model, _integer_sizes(engine), excluded)
    except ModelError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as error:  # the converter and the quantizer raise many kinds
        shutil.rmtree(folder, ignore_errors=True)
        raise ModelError(
            f"{type(model).__name__} cannot be written for LiteRT: {first_line(error)}; use "
            f"backend: onnxruntime"
        ) from error


def why_not(module: nn.Module, config: QuantizationConfig) -> str:
    """Return the reason why a module of this class stays in fp32."""
    if config.resolved_mode == "none":
        return "mode: none"
    return f"AI Edge Quantizer leaves this {type(module).__name__} in floating point"


def _convert(model: Classifier, names: tuple[str, ...], row: Arrays, path: Path) -> Path:
    converter = require("litert_torch", _EXTRA)
    wrapped = FixedRow(model, names).train(False)
    converter.convert(wrapped, as_tensors(row, names)).export(str(path))
    return path


def _quantize(
    source: Path,
    target: Path,
    config: QuantizationConfig,
    names: tuple[str, ...],
    rows: Sequence[Arrays],
) -> None:
    tools = require("ai_edge_quantizer.quantizer", _EXTRA)
    kinds = require("ai_edge_quantizer.qtyping", _EXTRA)
    quantizer, operation = tools.Quantizer(str(source)), kinds.TFLOperationName
    found = None
    if config.resolved_mode == "dynamic":
        quantizer.add_dynamic_config(".*", operation.ALL_SUPPORTED, num_bits=8)
    else:
        quantizer.add_static_config(
            ".*", operation.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8
        )
        # Tables by their weights: an int8 look-up would need the range of its output.
        quantizer.add_dynamic_config(".*", operation.EMBEDDING_LOOKUP, num_bits=8)
        # Inputs and outputs stay in floats: logits that leave as integers are clipped.
        unchanged = require("ai_edge_quantizer.algorithm_manager", _EXTRA).AlgorithmName.NO_QUANTIZE
        for place in (operation.INPUT, operation.OUTPUT):
            quantizer.update_quantization_recipe(".*", place, algorithm_key=unchanged)
        places = [{f"{_PREFIX}{i}": row[n] for i, n in enumerate(names)} for row in rows]
        found = _ranges(source, quantizer.get_quantization_recipe(), places)
    quantizer.quantize(found).export_model(str(target), overwrite=True)


def _ranges(source: Path, recipe: object, places: Sequence[Arrays]) -> object:
    """Return the range of each activation over all rows; the quantizer's own is an average."""
    tools = require("ai_edge_quantizer.calibrator", _EXTRA)
    manager = require("ai_edge_quantizer.recipe_manager", _EXTRA).RecipeManager()
    manager.load_quantization_recipe(recipe)
    update = require("ai_edge_quantizer.utils.qsv_utils", _EXTRA).min_max_update
    calibrator = tools.Calibrator(
        str(source),
        mode=tools.CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS,
        qsv_update_func=update,
    )
    calibrator.calibrate({"serving_default": places}, manager)
    found: object = calibrator.get_model_qsvs()
    return found


def _integer_sizes(engine: LitertEngine) -> list[int]:
    return [
        int(np.prod(item["shape"]))
        for item in engine._interpreter.get_tensor_details()
        if item["dtype"] is np.int8 and len(item["shape"]) > 1
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the converter and the quantizer print and warn of."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), ExitStack() as stack:
            for silence in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                stack.enter_context(silence(io.StringIO()))
            # litert-torch 0.10, 2026-11: caused inside it.
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
