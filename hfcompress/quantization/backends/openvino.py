"""OpenVINO: int8 after calibration with NNCF; fp32 or bf16 where a sum is not int8."""

from __future__ import annotations

import io
import logging
import os
import shutil
import tempfile
import warnings
import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hfcompress.errors import DataError, ModelError, first_line
from hfcompress.inference import dense_logits
from hfcompress.quantization.answers import output_values
from hfcompress.quantization.backends.openvino_graph import (
    compact,
    halve_constants,
    quantize_tables,
)
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import without_weights
from hfcompress.quantization.distance import WARN, compared_rows, relative_error
from hfcompress.quantization.engine import (
    Arrays,
    FileEngine,
    Shapes,
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
from hfcompress.quantization.onnx_export import (
    POOLING,
    check_against_torch,
    export_onnx,
    input_names,
)
from hfcompress.storage.temporary import temporary_folder
from hfcompress.training.outputs import infer_task
from hfcompress.utils import require

if TYPE_CHECKING:
    from openvino import CompiledModel, Model, Node, Output

FILE = "model.xml"
_PRECISION = "INFERENCE_PRECISION_HINT"


class OpenVinoEngine(FileEngine):
    """Runs one compiled model.

    Args:
        path: ``model.xml``, ``model.bin`` beside it; or an ONNX file. It must exist as long as the
            engine is used.
        threads: None takes torch's number.
        floats: ``fp32``, or ``auto`` for bf16 where the processor has it.
        folder: a temporary folder that is deleted with the engine.
        shapes: of the inputs, for batches of this shape only: otherwise OpenVINO infers every
            operation's shape at every call, a third of the time of a small model.
        inputs: their names, where the model is not a transformers model.

    Raises:
        MissingExtraError: openvino is not installed.
        ModelError: OpenVINO cannot load the file for the shape, or it has other inputs.
    """

    name = "openvino"

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        floats: str = "fp32",
        folder: Path | None = None,
        shapes: Shapes | None = None,
        inputs: Sequence[str] = (),
    ) -> None:
        openvino = require("openvino", "openvino")
        options: dict[str, str | int] = {} if floats == "auto" else {_PRECISION: "f32"}
        options["INFERENCE_NUM_THREADS"] = thread_count(threads)
        self.path, self.files = path, tuple(_files(path))
        self._threads, self._floats, self._shapes = threads, floats, shapes
        if folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        try:
            core = openvino.Core()
            graph = core.read_model(str(path))
            if shapes is not None:
                graph.reshape({item: _shape_of(item, shapes) for item in graph.inputs})
            self._compiled = core.compile_model(graph, "CPU", options)
        except Exception as error:  # OpenVINO's errors share no base class
            raise ModelError(f"OpenVINO cannot load {path}: {_reason(error)}") from error
        self.inputs = tuple(str(item.any_name) for item in self._compiled.inputs)
        check_inputs(self.inputs, str(path), inputs)

    def options(self) -> dict[str, object]:
        """Return the threads, the precision, the static shapes and the inputs."""
        return {
            "threads": self._threads,
            "floats": self._floats,
            "shapes": self._shapes,
            "inputs": self.inputs,
        }

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the logits of one batch.

        Raises:
            DataError: a batch of another shape than the engine was compiled for or reads.
        """
        given = select_inputs(arrays, self.inputs)
        if self._shapes is not None:
            self._check(given)
        try:
            return _logits(self._compiled, given)
        except Exception as error:  # OpenVINO's errors share no base class
            raise unreadable(given, error) from error

    def with_shapes(self, shapes: Shapes) -> OpenVinoEngine:
        """Return an engine for batches of this shape alone; see `StaticShapeEngine`."""
        static = OpenVinoEngine(
            self.path, self._threads, self._floats, shapes=shapes, inputs=self.inputs
        )
        static._origin = self  # keep its files, which are deleted with that engine
        return static

    def _check(self, given: Arrays) -> None:
        for item in self._compiled.inputs:
            found, wanted = given[item.any_name].shape, tuple(item.shape)
            if found != wanted:
                raise DataError(
                    f"this engine is compiled for {item.any_name} of {_times(wanted)} and received "
                    f"{_times(found)}; load the model without a shape"
                )


def _shape_of(item: Output, shapes: Shapes) -> list[int]:
    """Return an input's shape; token types, which a batch may omit, have that of the tokens."""
    return list(shapes.get(item.any_name) or next(iter(shapes.values())))


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def load_engine(folder: Path, threads: int | None = None) -> OpenVinoEngine:
    """Return the engine of a saved folder.

    Raises:
        MissingExtraError, ModelError: as `OpenVinoEngine` and `check_size`.
    """
    require("openvino", "openvino")
    path = graph_path(folder, FILE)
    check_size(folder, _files(path))
    manifest = read_manifest(folder)
    floats = manifest["quantization"].get("floats", "fp32")
    return OpenVinoEngine(path, threads, floats, inputs=manifest["inputs"])


def quantize_model(
    model: Classifier,
    config: QuantizationConfig,
    excluded: Collection[str],
    batches: Sequence[Arrays],
) -> tuple[OpenVinoEngine, set[str]]:
    """Export a model to ONNX, convert it and quantize the graph.

    Args:
        model: fp32.
        config: of this backend.
        excluded: modules that stay in fp32.
        batches: calibration inputs.

    Returns:
        The engine, and the names of the modules that are quantized.

    Raises:
        MissingExtraError: a package is not installed.
        ModelError: a layer without units, torch cannot export the model, its outputs differ, or
            OpenVINO or NNCF fails on the graph; the message then names the fp32 ONNX file.
    """
    openvino = require("openvino", "openvino")
    if empty := sorted(without_weights(model)):
        raise ModelError(
            f"OpenVINO reads no layer without units, and shrinking has removed all of {empty[0]}; "
            f"use backend onnxruntime or torch"
        )
    if config.resolved_mode == "static":
        require("nncf", "openvino")
    folder = temporary_folder()
    image, inputs = image_shape(model, batches), input_names(model)
    try:
        dense = export_onnx(model, folder / "fp32" / "model.onnx", image, one_file=False)
        check_against_torch(model, OpenVinoEngine(dense, inputs=inputs).logits, "OpenVINO", image)
        try:
            with _quiet():
                if config.resolved_mode == "static":
                    graph = _closest(dense, model, config, excluded, batches)
                else:
                    graph = openvino.convert_model(str(dense))
                openvino.save_model(graph, str(folder / FILE), compress_to_fp16=False)
            names = _integer_modules(graph, model)
            if names:
                compact(folder / FILE, names)
            del graph  # it maps the ONNX file and takes as much memory as the model
            engine = OpenVinoEngine(
                folder / FILE, floats=config.floats, folder=folder, inputs=inputs
            )
        except Exception as error:  # keep the export: it is valid and took time
            kept = Path(tempfile.mkdtemp(prefix="hfcompress-kept-"))
            for file in dense.parent.iterdir():
                os.replace(file, kept / file.name)
            raise ModelError(
                f"OpenVINO cannot quantize {type(model).__name__}: {_reason(error)}; "
                f"the fp32 model is kept as {kept / dense.name}"
            ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(dense.parent)
    return engine, names


def why_not(module: nn.Module, config: QuantizationConfig) -> str:
    """Return the reason why a module of this class stays in fp32."""
    if config.resolved_mode == "none":
        return "mode: none"
    if isinstance(module, nn.Embedding) and not config.embeddings:
        return "embeddings: false"
    return "NNCF left its operation in floating point"


# --- quantizing --------------------------------------------------------------------------------


def _closest(
    dense: Path,
    model: Classifier,
    config: QuantizationConfig,
    excluded: Collection[str],
    batches: Sequence[Arrays],
) -> Model:
    """Quantize in the mode that fits the model, or in each mode and return the closest to fp32.

    NNCF's transformer mode suits attention. It loses much in networks without attention, however
    many of their layers are Linears (ConvNeXt).
    """
    openvino = require("openvino", "openvino")
    rows = compared_rows(model, batches)
    kind = infer_task(model)
    exact = output_values([dense_logits(model, batch) for batch in rows], rows, kind)
    best, smallest = None, float("inf")
    graph = openvino.convert_model(str(dense))
    modes, several = _modes(graph)
    for transformer in modes:
        made = _quantize(graph, model, config, excluded, batches, transformer)
        error = relative_error(output_values(list(_run(made, rows)), rows, kind), exact)
        if best is None or error < smallest:
            best, smallest = made, error
        if error <= WARN and not several:
            break
        graph = openvino.convert_model(str(dense))
    return best


def _modes(graph: Model) -> tuple[tuple[bool, ...], bool]:
    """Return whether to use NNCF's transformer mode, the likely choice first, and whether both
    must be tried: with attention and more convolutions than a patch embedding."""
    kinds = Counter(op.get_type_name() for op in graph.get_ops())
    attention = any(kinds[name] for name in ("Softmax", "ScaledDotProductAttention"))
    convolutions = kinds["Convolution"] + kinds["GroupConvolution"]
    return (attention, not attention), attention and convolutions > 1


def _run(graph: Model, rows: Sequence[Arrays]) -> Iterator[NDArray[np.float32]]:
    compiled = (
        require("openvino", "openvino").Core().compile_model(graph, "CPU", {_PRECISION: "f32"})
    )
    inputs = tuple(item.any_name for item in compiled.inputs)
    for batch in rows:
        yield _logits(compiled, select_inputs(batch, inputs))


def _logits(compiled: CompiledModel, given: Arrays) -> NDArray[np.float32]:
    """Run one batch; outputs of a graph may have no name, and then the first is the logits."""
    places = {name: n for n, item in enumerate(compiled.outputs) for name in item.names}
    found = compiled(given)
    return join_logits(
        [found[places.get(name, 0)] for name in logit_outputs([*places])] or [found[0]]
    )


def _quantize(
    graph: Model,
    model: Classifier,
    config: QuantizationConfig,
    excluded: Collection[str],
    batches: Sequence[Arrays],
    transformer: bool,
) -> Model:
    nncf = require("nncf", "openvino")
    inputs = tuple(item.any_name for item in graph.inputs)
    rows = [select_inputs(batch, inputs) for batch in batches]
    tables = _tables(graph, model)
    ignored = {op.get_friendly_name() for op in graph.get_ops() if _module_of(op) in set(excluded)}
    ignored |= tables
    ignored |= {
        op.get_friendly_name()
        for op in graph.get_ops()
        if op.get_friendly_name().startswith(POOLING) and op.get_type_name() != "Constant"
    }
    quantized = nncf.quantize(
        graph,
        nncf.Dataset(rows),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        # Symmetric weights and affine activations, the default of the transformer mode.
        preset=None if transformer else nncf.QuantizationPreset.MIXED,
        subset_size=len(rows),
        ignored_scope=nncf.IgnoredScope(names=sorted(ignored)) if ignored else None,
    )
    if config.embeddings:
        quantize_tables(quantized, tables - set(excluded), config.embedding_bits)
    halve_constants(quantized)
    return quantized


def _tables(graph: Model, model: Classifier) -> set[str]:
    names = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return {op.get_friendly_name() for op in graph.get_ops()} & names


def _integer_modules(graph: Model, model: Classifier) -> set[str]:
    """Return the names of modules whose operation reads integers through scales and shifts."""
    names = {name for name, _ in model.named_modules()}
    return {
        _module_of(op)
        for op in graph.get_ops()
        if _module_of(op) in names
        and any(_reads_integers(value.get_source_output().get_node()) for value in op.inputs())
    }


def _module_of(op: Node) -> str:
    """Return the module of an operation; NNCF splits the bias off a convolution's."""
    return str(op.get_friendly_name()).removesuffix("/WithoutBiases")


def _reads_integers(node: Node) -> bool:
    kind = node.get_type_name()
    if kind == "Constant":
        return str(node.get_element_type().to_string()) in ("i8", "u8", "i4", "u4")
    if kind not in ("Convert", "Multiply", "Subtract", "Reshape", "Transpose"):
        return False
    return _reads_integers(node.input_value(0).get_node())


def _files(path: Path) -> list[Path]:
    beside = [path.with_suffix(".bin"), path.with_name(f"{path.name}.data")]
    return [path, *(file for file in beside if file.is_file())]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence NNCF's log and progress bars."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # Attention masks are finfo.min, and NNCF takes means of many; what that spoils is measured.
        overflow = np.errstate(over="ignore", invalid="ignore")
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), overflow:
            # nncf 3.4, 2026-11: caused by its own use of torch and numpy.
            warnings.filterwarnings("ignore", module=r"(nncf|openvino)\b")
            yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    """Return what an error says; OpenVINO's begin with lines of its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    plain = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return plain[0] if plain else first_line(error)
