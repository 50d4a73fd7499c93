"""Core ML: a ``.mlpackage`` for Apple's systems, fp32 or with int8 weights.

It is converted here and runs there alone: nothing on this machine can say what it answers.
"""

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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hfcompress.errors import ModelError, first_line
from hfcompress.measure.macs import evaluation_mode
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays, check_size
from hfcompress.quantization.inputs import Classifier
from hfcompress.quantization.manifest import padding_id, read_manifest
from hfcompress.quantization.onnx_export import OUTPUT, eager_attention, input_names
from hfcompress.quantization.phone import (
    FixedRow,
    RowEngine,
    as_tensors,
    modules_of_sizes,
    new_folder,
    pad_id_of,
    static_rows,
)
from hfcompress.utils import require

FOLDER = "model.mlpackage"
_EXTRA = "coreml"
# With fewer values an integer weight's scales and operation take as much as it saves.
_WORTH_QUANTIZING = 512
_INTEGERS = "constexpr_affine_dequantize"


class CoremlEngine(RowEngine):
    """A ``.mlpackage``, which runs on Apple's systems alone: it is saved, and refuses to run.

    Args:
        path: the package, a folder.
        pad_id: token that texts are padded with.
        folder: a temporary folder that is deleted with the engine.

    Raises:
        MissingExtraError: coremltools is not installed.
        ModelError: coremltools cannot read the package.
    """

    name = "coreml"

    def __init__(self, path: Path, pad_id: int = 0, folder: Path | None = None) -> None:
        self.path, self.pad_id = path, pad_id
        self.files = tuple(sorted(file for file in path.rglob("*") if file.is_file()))
        if folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        try:
            with _quiet():
                self.description = _coremltools().utils.load_spec(str(path))
        except Exception as error:  # coremltools raises many kinds
            raise ModelError(f"coremltools cannot read {path}: {first_line(error)}") from error
        inputs = self.description.description.input
        self.inputs = tuple(item.name for item in inputs)
        self.shapes = {item.name: tuple(item.type.multiArrayType.shape) for item in inputs}

    def __reduce__(self) -> tuple[object, ...]:
        files = {str(file.relative_to(self.path)): file.read_bytes() for file in self.files}
        return _restore, (files, self.pad_id)

    def __deepcopy__(self, memo: object) -> CoremlEngine:
        return self  # nothing changes it, and nothing runs it

    def write(self, folder: Path) -> None:
        """Copy the package."""
        shutil.copytree(self.path, folder / FOLDER)

    def run_row(self, row: Arrays) -> NDArray[np.float32]:
        """Refuse.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "a Core ML package runs on macOS and iOS only, and hfcompress does not run it; copy "
            "the saved folder there, or use backend: executorch, litert or onnxruntime"
        )


def _restore(files: dict[str, bytes], pad_id: int) -> CoremlEngine:
    folder = new_folder()
    for name, content in files.items():
        file = folder / FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return CoremlEngine(folder / FOLDER, pad_id, folder)


def load_engine(folder: Path, threads: int | None = None) -> CoremlEngine:
    """Return the engine of a saved folder.

    Raises:
        MissingExtraError, ModelError: as `CoremlEngine` and `check_size`.
    """
    _coremltools()
    engine = CoremlEngine(folder / FOLDER, padding_id(read_manifest(folder)))
    check_size(folder, engine.files)
    return engine


def quantize_model(
    model: Classifier,
    config: QuantizationConfig,
    excluded: Collection[str],
    batches: Sequence[Arrays],
) -> tuple[CoremlEngine, set[str]]:
    """Convert a model, and store its weights as integers with a scale for each output.

    Args:
        model: fp32.
        config: of this backend.
        excluded: not used; the package does not name modules.
        batches: their first row is the shape of the package.

    Returns:
        The engine, and the names of the modules that are quantized.

    Raises:
        MissingExtraError: coremltools is not installed.
        ModelError: torch cannot export the model, or coremltools cannot convert it.
    """
    tools = _coremltools()
    names, rows = input_names(model), static_rows(model, batches, 1)
    folder = new_folder()
    try:
        with evaluation_mode(model), eager_attention(model), _quiet(), torch.no_grad():
            package = _convert(tools, model, names, rows[0])
            if config.resolved_mode != "none":
                package = _quantized(tools, package)
            package.save(str(folder / FOLDER))
        engine = CoremlEngine(folder / FOLDER, pad_id_of(model), folder)
    except Exception as error:  # torch.export and coremltools raise many kinds
        shutil.rmtree(folder, ignore_errors=True)
        raise ModelError(
            f"{type(model).__name__} cannot be written for Core ML: {first_line(error)}; use "
            f"backend: executorch, litert or onnxruntime"
        ) from error
    return engine, modules_of_sizes(model, _integer_sizes(engine.description), excluded)


def _coremltools() -> Any:
    """Import it without its notes on versions, and on what only macOS has."""
    with _quiet():
        return require("coremltools", _EXTRA)


def why_not(module: nn.Module, config: QuantizationConfig) -> str:
    """Return the reason why a module of this class stays in floating point."""
    if config.resolved_mode == "none":
        return "mode: none"
    return f"coremltools leaves this {type(module).__name__} in floating point"


def _convert(tools: Any, model: Classifier, names: tuple[str, ...], row: Arrays) -> Any:
    example = as_tensors(row, names)
    wrapped = FixedRow(model, names).train(False)
    exported = torch.export.export(wrapped, example, strict=False).run_decompositions()
    _prepare(exported.graph)
    inputs = [tools.TensorType(name, shape=tuple(row[name].shape)) for name in names]
    return tools.convert(
        exported,
        inputs=inputs,
        outputs=[tools.TensorType(OUTPUT)],
        convert_to="mlprogram",
        compute_precision=tools.precision.FLOAT32,
        minimum_deployment_target=tools.target.iOS16,
        skip_model_load=True,
    )


def _prepare(graph: torch.fx.Graph) -> None:
    """Drop aliases, and name the stride of poolings that have their window's size.

    coremltools 9.0, 2026-11: it knows no alias, and asks for the stride.
    """
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == "call_function" and "max_pool" in str(node.target) and len(node.args) == 2:
            node.args = (*node.args, node.args[1])


def _quantized(tools: Any, package: Any) -> Any:
    coreml = require("coremltools.optimize.coreml", _EXTRA)
    options = coreml.OpLinearQuantizerConfig(
        mode="linear_symmetric", weight_threshold=_WORTH_QUANTIZING
    )
    return coreml.linear_quantize_weights(package, coreml.OptimizationConfig(global_config=options))


def _integer_sizes(description: Any) -> list[int]:
    """Return the number of elements of each integer weight."""
    return [
        int(
            np.prod(
                [side.constant.size for side in operation.outputs[0].type.tensorType.dimensions]
            )
        )
        for function in description.mlProgram.functions.values()
        for block in function.block_specializations.values()
        for operation in block.operations
        if operation.type == _INTEGERS
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what coremltools prints and warns of."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), ExitStack() as stack:
            for silence in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                stack.enter_context(silence(io.StringIO()))
            # coremltools 9.0, 2026-11: caused inside it.
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
