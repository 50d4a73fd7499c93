"""ONNX Runtime: an exported graph, its matrix products and tables in int8, dynamic or static."""

from __future__ import annotations

import io
import logging
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hfcompress.errors import ModelError, first_line
from hfcompress.measure.macs import CONVOLUTIONS
from hfcompress.quantization.backends.onnx_blocks import quantize_blocks
from hfcompress.quantization.backends.onnx_dynamic import quantize_weights
from hfcompress.quantization.backends.onnx_graph import (
    QUANTIZED,
    compact,
    quantize_tables,
    scale_tokens,
)
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import DYNAMIC_LEAVES_CONVOLUTIONS
from hfcompress.quantization.engine import (
    Array,
    Arrays,
    FileEngine,
    check_inputs,
    check_size,
    join_logits,
    logit_outputs,
    select_inputs,
    thread_count,
    unreadable,
)
from hfcompress.quantization.images import image_shape
from hfcompress.quantization.inputs import Classifier
from hfcompress.quantization.manifest import graph_path, read_manifest
from hfcompress.quantization.onnx_export import check_against_torch, export_onnx, input_names
from hfcompress.quantization.smoothquant import largest_inputs, smooth_products
from hfcompress.storage.temporary import temporary_folder
from hfcompress.utils import require

FILE = "model.onnx"
# With Relu and Clip among them, the range of a convolution's output is that behind the activation.
_OPERATORS = ("MatMul", "Conv", "Relu", "Clip")
# ONNX Runtime's fused Add + LayerNorm kernel is not vectorized, its LayerNorm kernel is: with the
# fusion an int8 encoder of DistilBERT's shape takes 12 % longer for 32 x 32 tokens.
SLOW_FUSIONS = ["SkipLayerNormFusion"]
_CALIBRATIONS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


class OnnxEngine(FileEngine):
    """Runs one ONNX file.

    Args:
        path: the file; it must exist as long as the engine is used.
        threads: of one operator; None takes torch's number.
        folder: a temporary folder that is deleted with the engine.
        inputs: their names, where the model is not a transformers model.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: ONNX Runtime cannot load the file, or it has other inputs.
    """

    name = "onnxruntime"

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        folder: Path | None = None,
        inputs: Sequence[str] = (),
    ) -> None:
        ort = require("onnxruntime", "onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = thread_count(threads)
        options.log_severity_level = 3
        # Without it, idle threads keep spinning after a call and slow down whatever runs next
        # (torch, a second session) up to twofold.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.path, self.files, self._threads = path, tuple(_files(path)), threads
        if folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        try:
            self._session = ort.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=SLOW_FUSIONS,
            )
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ModelError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error
        self.inputs = tuple(str(item.name) for item in self._session.get_inputs())
        self._outputs = logit_outputs([item.name for item in self._session.get_outputs()])
        check_inputs(self.inputs, str(path), inputs)

    def options(self) -> dict[str, object]:
        """Return the number of threads and the inputs."""
        return {"threads": self._threads, "inputs": self.inputs}

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the logits of one batch.

        Raises:
            DataError: a batch of another shape or type than the graph reads.
        """
        given = select_inputs(arrays, self.inputs)
        try:
            return join_logits(self._session.run(self._outputs, given))
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise unreadable(given, error) from error


def load_engine(folder: Path, threads: int | None = None) -> OnnxEngine:
    """Return the engine of a saved folder.

    Raises:
        MissingExtraError, ModelError: as `OnnxEngine` and `check_size`.
    """
    require("onnxruntime", "onnx")
    path = graph_path(folder, FILE)
    check_size(folder, _files(path))
    return OnnxEngine(path, threads, inputs=read_manifest(folder)["inputs"])


def quantize_model(
    model: Classifier,
    config: QuantizationConfig,
    excluded: Collection[str],
    batches: Sequence[Arrays],
) -> tuple[OnnxEngine, set[str]]:
    """Export a model and quantize the graph.

    Args:
        model: fp32.
        config: of this backend.
        excluded: modules that stay in fp32.
        batches: calibration inputs; read in static mode.

    Returns:
        The engine, and the names of the modules that are quantized.

    Raises:
        MissingExtraError: a package is not installed.
        ModelError: torch cannot export the model, its outputs differ, or ONNX Runtime cannot
            quantize the graph; the message then names the fp32 file.
    """
    require("onnxruntime", "onnx")
    folder = temporary_folder()
    image, inputs = image_shape(model, batches), input_names(model)
    try:
        one_file = config.resolved_mode == "none"  # other modes read it again and delete it
        dense = export_onnx(model, folder / "fp32" / FILE, image, one_file)
        check_against_torch(model, OnnxEngine(dense, inputs=inputs).logits, "ONNX Runtime", image)
        if config.resolved_mode == "none":
            return OnnxEngine(dense, folder=folder, inputs=inputs), set()
        target = folder / FILE
        try:
            largest = {} if config.smooth is None else largest_inputs(model, batches)
            _quantize(dense, target, config, excluded, batches, largest)
            engine = OnnxEngine(target, folder=folder, inputs=inputs)
        except Exception as error:  # keep the export: it is valid and took time
            raise ModelError(
                f"ONNX Runtime cannot quantize {type(model).__name__}: {first_line(error)}; "
                f"the fp32 model is kept as {_keep(dense)}"
            ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(dense.parent)
    return engine, _integer_modules(target)


def why_not(module: nn.Module, config: QuantizationConfig) -> str:
    """Return the reason why a module of this class stays in fp32."""
    if config.resolved_mode == "none":
        return "mode: none"
    if isinstance(module, nn.Embedding):
        return "embeddings: false" if not config.embeddings else "its table is not in the graph"
    if isinstance(module, CONVOLUTIONS) and config.resolved_mode == "dynamic":
        return DYNAMIC_LEAVES_CONVOLUTIONS
    return "ONNX Runtime found no product with its weight in the graph"


# --- quantizing --------------------------------------------------------------------------------


class _Common(TypedDict):
    """Arguments of both of ONNX Runtime's quantizers."""

    per_channel: bool
    reduce_range: bool
    weight_type: object
    nodes_to_exclude: list[str]


def _quantize(
    source: Path,
    target: Path,
    config: QuantizationConfig,
    excluded: Collection[str],
    batches: Sequence[Arrays],
    largest: Mapping[str, NDArray[np.float32]],
) -> None:
    onnx = require("onnx", "onnx")
    tools = require("onnxruntime.quantization", "onnx")
    common: _Common = {
        "per_channel": config.per_channel,
        "reduce_range": config.reduce_range,
        "weight_type": tools.QuantType.QInt8,
        "nodes_to_exclude": sorted(excluded),
    }
    if config.smooth is not None:
        source = _smoothed(source, largest, config.smooth, excluded)
    with _quiet():
        if config.resolved_mode == "static":
            _quantize_static(source, target, config, batches, common)
            made = onnx.load(str(target))
            if config.embeddings:
                quantize_tables(made, config.embedding_bits, excluded)
        else:
            graph = onnx.load(str(source), load_external_data=False)
            bits = config.embedding_bits if config.embeddings else None
            if config.per_token:
                scale_tokens(graph.graph, excluded)
            # Dynamic int8 convolutions are slower than fp32 and need calibration to be accurate.
            options = {
                **common,
                "op_types_to_quantize": ["MatMul"],
                "extra_options": {"MatMulConstBOnly": True},
            }
            if config.block_size is not None:
                made = graph
                quantize_blocks(made, source.parent, excluded, config.block_size, bits)
            else:
                made = quantize_weights(graph, source.parent, excluded, options, bits)
    compact(made)
    onnx.save(made, str(target))


def _smoothed(
    source: Path,
    largest: Mapping[str, NDArray[np.float32]],
    strength: float,
    excluded: Collection[str],
) -> Path:
    """Write the graph after `smooth_products` beside its file, and return the new path."""
    onnx = require("onnx", "onnx")
    model = onnx.load(str(source))
    smooth_products(model.graph, largest, strength, excluded)
    path = source.with_name("smoothed.onnx")
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    return path


def _quantize_static(
    source: Path,
    target: Path,
    config: QuantizationConfig,
    batches: Sequence[Arrays],
    common: _Common,
) -> None:
    tools = require("onnxruntime.quantization", "onnx")
    tools.quantize_static(
        str(source),
        str(target),
        _Reader(batches, _inputs(source)),
        quant_format=tools.QuantFormat.QDQ,
        activation_type=tools.QuantType.QUInt8,
        calibrate_method=getattr(tools.CalibrationMethod, _CALIBRATIONS[config.calibrate]),
        op_types_to_quantize=list(_OPERATORS),
        extra_options={
            "MatMulConstBOnly": True,
            "CalibPercentile": config.percentile,
            # Calibrate batch by batch: batches differ in length, and the activations of all of them
            # would need many times the model's memory.
            "CalibStridedMinMax": 1,
        },
        **common,
    )


def _inputs(path: Path) -> tuple[str, ...]:
    """Return the names of a graph's inputs."""
    onnx = require("onnx", "onnx")
    graph = onnx.load(str(path), load_external_data=False).graph
    return tuple(item.name for item in graph.input)


class _Reader:
    """Gives ONNX Runtime the calibration batches one by one."""

    def __init__(self, batches: Sequence[Arrays], inputs: tuple[str, ...]) -> None:
        self._batches, self._inputs = batches, inputs
        self._iterator = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next batch, None at the end."""
        batch = next(self._iterator, None)
        return None if batch is None else select_inputs(batch, self._inputs)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Continue with some of the batches."""
        self._iterator = iter(self._batches[start_index:end_index])

    def __len__(self) -> int:
        return len(self._batches)


def _integer_modules(path: Path) -> set[str]:
    """Return the names of modules whose weight is an integer in the graph."""
    onnx = require("onnx", "onnx")
    graph = onnx.load(str(path), load_external_data=False).graph
    integers = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    suffix = f".weight{QUANTIZED}"
    return {
        item.name.removesuffix(suffix)
        for item in graph.initializer
        if item.data_type in integers and item.name.endswith(suffix)
    }


def _files(path: Path) -> list[Path]:
    beside = path.with_name(f"{path.name}.data")
    return [path, beside] if beside.is_file() else [path]


def _keep(dense: Path) -> Path:
    """Move the fp32 export out of the folder that is about to be deleted; return its new path."""
    kept = Path(tempfile.mkdtemp(prefix="hfcompress-kept-"))
    for file in _files(dense):
        os.replace(file, kept / file.name)
    return kept / dense.name


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the quantizer prints, and its advice on the root logger."""

    def wanted(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(wanted)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            # onnxruntime 1.31, 2026-11: caused by its own use of numpy and onnx.
            warnings.filterwarnings("ignore", module=r"(onnxruntime|onnx)\b")
            yield
    finally:
        root.removeFilter(wanted)
