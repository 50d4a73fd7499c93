"""ExecuTorch: a ``.pte`` file for phones, by XNNPACK, fp32 or int8 by its own quantizer."""

from __future__ import annotations

import contextlib
import shutil
import warnings
import weakref
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hfcompress.errors import ModelError, first_line
from hfcompress.measure.macs import evaluation_mode
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays, check_size, unreadable
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

FILE = "model.pte"
_ROWS = 256
_EXTRA = "executorch"


class ExecutorchEngine(RowEngine):
    """Runs one ``.pte`` file in ExecuTorch's Python runtime, row by row.

    Args:
        path: the file.
        inputs: names of its inputs, which the file does not have.
        pad_id: token that texts are padded with.
        folder: a temporary folder that is deleted with the engine.

    Raises:
        MissingExtraError: executorch is not installed.
        ModelError: the runtime cannot load the file, or it has other inputs.
    """

    name = "executorch"

    def __init__(
        self, path: Path, inputs: Sequence[str], pad_id: int = 0, folder: Path | None = None
    ) -> None:
        runtime = require("executorch.runtime", _EXTRA)
        self.path, self.files, self.inputs, self.pad_id = path, (path,), tuple(inputs), pad_id
        if folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        try:
            self._program = runtime.Runtime.get().load_program(path.read_bytes())
            self._method = self._program.load_method("forward")
            found = [
                tuple(self._method.metadata.input_tensor_meta(place).sizes())
                for place in range(self._method.metadata.num_inputs())
            ]
        except Exception as error:  # the runtime's errors share no base class
            raise ModelError(f"ExecuTorch cannot load {path}: {first_line(error)}") from error
        if len(found) != len(self.inputs):
            raise ModelError(
                f"{path} has {len(found)} inputs and its record names {', '.join(self.inputs)}; "
                f"save the model again"
            )
        self.shapes = dict(zip(self.inputs, found, strict=True))

    def options(self) -> dict[str, object]:
        """Return the names of the inputs and the padding."""
        return {"inputs": self.inputs, "pad_id": self.pad_id}

    def run_row(self, row: Arrays) -> NDArray[np.float32]:
        """Return the logits of one row.

        Raises:
            DataError: a row that the file does not read.
        """
        try:
            found = self._method.execute(list(as_tensors(row, self.inputs)))
        except Exception as error:
            raise unreadable(row, error) from error
        return np.array(found[0].numpy(), np.float32)


def load_engine(folder: Path, threads: int | None = None) -> ExecutorchEngine:
    """Return the engine of a saved folder; the runtime has one pool of threads for the process.

    Raises:
        MissingExtraError, ModelError: as `ExecutorchEngine` and `check_size`.
    """
    require("executorch", _EXTRA)
    check_size(folder, [folder / FILE])
    manifest = read_manifest(folder)
    return ExecutorchEngine(folder / FILE, manifest["inputs"], padding_id(manifest))


def quantize_model(
    model: Classifier,
    config: QuantizationConfig,
    excluded: Collection[str],
    batches: Sequence[Arrays],
) -> tuple[ExecutorchEngine, set[str]]:
    """Export a model and quantize it with XNNPACK's quantizer.

    Args:
        model: fp32.
        config: of this backend.
        excluded: modules that stay in fp32.
        batches: their first row is the shape of the file; static mode calibrates on all.

    Returns:
        The engine, and the names of the modules that are quantized.

    Raises:
        MissingExtraError: executorch is not installed.
        ModelError: torch cannot export the model, or ExecuTorch cannot lower it.
    """
    require("executorch.exir", _EXTRA)
    names, rows = input_names(model), static_rows(model, batches, _ROWS)
    wrapped, example = FixedRow(model, names).train(False), as_tensors(rows[0], names)
    folder, sizes = new_folder(), []
    try:
        with evaluation_mode(model), eager_attention(model), _quiet(), torch.no_grad():
            exported = torch.export.export(wrapped, example, strict=False)
            if config.resolved_mode != "none":
                graph: Any = exported.module()
                graph = _quantized(graph, config, excluded, [as_tensors(r, names) for r in rows])
                exported = torch.export.export(graph, example, strict=False)
                tensors = (*exported.state_dict.values(), *exported.constants.values())
                sizes = [t.numel() for t in tensors if _is_integer(t)]
            path = _write(exported, folder / FILE)
        engine = ExecutorchEngine(path, names, pad_id_of(model), folder)
        if config.resolved_mode == "none":
            check_rows(model, engine, rows)
    except ModelError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as error:  # torch.export and ExecuTorch raise many kinds
        shutil.rmtree(folder, ignore_errors=True)
        raise ModelError(
            f"{type(model).__name__} cannot be written for ExecuTorch: {first_line(error)}; use "
            f"backend: onnxruntime"
        ) from error
    return engine, modules_of_sizes(model, sizes, excluded)


def why_not(module: nn.Module, config: QuantizationConfig) -> str:
    """Return the reason why a module of this class stays in fp32."""
    if config.resolved_mode == "none":
        return "mode: none"
    return f"XNNPACK's quantizer leaves this {type(module).__name__} in floating point"


def _quantized(
    graph: Any,
    config: QuantizationConfig,
    excluded: Collection[str],
    rows: Sequence[tuple[Tensor, ...]],
) -> Any:
    tools = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", _EXTRA)
    pt2e = require("torchao.quantization.pt2e.quantize_pt2e", _EXTRA)
    static = config.resolved_mode == "static"
    quantizer = _without_scalars(tools.XNNPACKQuantizer)().set_global(
        tools.get_symmetric_quantization_config(
            is_per_channel=config.per_channel, is_dynamic=not static
        )
    )
    for name in excluded:
        quantizer.set_module_name(f"model.{name}", None)
    prepared = pt2e.prepare_pt2e(graph, quantizer)
    for row in rows if static else rows[:1]:
        prepared(*row)
    return pt2e.convert_pt2e(prepared)


def _without_scalars(kind: Any) -> Any:
    """Return XNNPACK's quantizer without its change of scalars into floating-point tensors.

    executorch 1.5, 2026-11: it makes the whole numbers that index a transformer's mask floats.
    """
    return type(kind.__name__, (kind,), {"transform_for_annotation": lambda self, model: model})


def _write(exported: torch.export.ExportedProgram, path: Path) -> Path:
    exir = require("executorch.exir", _EXTRA)
    xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", _EXTRA)
    lowered = exir.to_edge_transform_and_lower(exported, partitioner=[xnnpack.XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    return path


def _is_integer(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype == torch.int8 and tensor.dim() > 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence deprecation warnings of torchao's and ExecuTorch's own calls."""
    with warnings.catch_warnings():
        # executorch 1.5, 2026-11: caused inside it.
        warnings.simplefilter("ignore")
        yield
