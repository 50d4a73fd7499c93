"""torchao, through transformers' own ``TorchAoConfig``: int8 and int4 checkpoints without ours."""

from __future__ import annotations

import hashlib
import shutil
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hfcompress.errors import ModelError, first_line
from hfcompress.inference import dense_logits
from hfcompress.quantization.backends.torch import load_checkpoint
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays, check_size, restore_engine, select_inputs
from hfcompress.quantization.inputs import Classifier, PlainModel
from hfcompress.quantization.onnx_export import input_names
from hfcompress.storage.temporary import temporary_folder
from hfcompress.utils import require

if TYPE_CHECKING:
    from transformers import TorchAoConfig

# With 4 bits, so many weights share a scale.
_GROUP = 32


class TorchAoEngine:
    """Runs the model of a checkpoint with torchao's tensors.

    Args:
        path: folder of the checkpoint; it must exist as long as the engine is used.
        folder: a temporary folder that is deleted with the engine.

    Raises:
        MissingExtraError: torchao is not installed.
    """

    name = "torchao"

    def __init__(self, path: Path, folder: Path | None = None) -> None:
        require("torchao", "torchao")
        self.folder = path
        if folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.model = load_checkpoint(path).train(False)
        self.inputs = input_names(self.model)

    def __reduce__(self) -> tuple[object, ...]:
        files = {file.name: file.read_bytes() for file in self.folder.iterdir()}
        return restore_engine, (type(self), "", files, {})

    @property
    def bytes(self) -> int:
        """Return the bytes of the weights' files."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    @property
    def digest(self) -> str:
        """Return a hash of the weights' files."""
        digest = hashlib.sha256()
        for file in sorted(self.folder.glob("*.safetensors")):
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the logits of one batch."""
        return dense_logits(self.model, select_inputs(arrays, self.inputs))

    def write(self, folder: Path) -> None:
        """Copy the checkpoint."""
        for file in self.folder.iterdir():
            shutil.copyfile(file, folder / file.name)


def load_engine(folder: Path, threads: int | None = None) -> TorchAoEngine:
    """Return the engine of a saved folder; torch's number of threads is the process's.

    Raises:
        MissingExtraError: torchao is not installed.
        ModelError: as `check_size` and `load_checkpoint`.
    """
    require("torchao", "torchao")
    check_size(folder, sorted(folder.glob("*.safetensors")))
    return TorchAoEngine(folder)


def quantize_model(
    model: Classifier,
    config: QuantizationConfig,
    excluded: Collection[str],
    batches: Sequence[Arrays],
) -> tuple[TorchAoEngine, set[str]]:
    """Save a model, load it with torchao's config and save it again.

    transformers quantizes while it loads. The engine is loaded from the final checkpoint, so that
    it equals what users load.

    Args:
        model: fp32, not shrunk: a checkpoint has one quantization method.
        config: of this backend.
        excluded: modules that stay in fp32.
        batches: not used.

    Returns:
        The engine, and the names of the modules that are quantized.

    Raises:
        MissingExtraError: torchao is not installed.
        ModelError: a shrunk model, or torchao refuses it.
    """
    require("torchao", "torchao")
    if isinstance(model, PlainModel):
        raise ModelError(
            f"{type(model).__name__} is not a transformers model, which backend torchao needs; use "
            f"backend: torch, onnxruntime or openvino"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"{type(model).__name__} was shrunk to widths that torchao's checkpoints cannot "
            f"record; use backend: torch, onnxruntime or openvino"
        )
    root = temporary_folder()
    try:
        model.save_pretrained(root / "fp32")
        quantized = type(model).from_pretrained(
            root / "fp32",
            quantization_config=_settings(config, {*excluded, *_indivisible(model, config)}),
            dtype=torch.float32,
        )
        names = {name for name, module in quantized.named_modules() if _is_quantized(module)}
        quantized.save_pretrained(root)
        shutil.rmtree(root / "fp32")
        engine = TorchAoEngine(root, root)
    except Exception as error:  # torchao's errors share no base class
        shutil.rmtree(root, ignore_errors=True)
        line = first_line(error)
        raise ModelError(f"torchao cannot quantize {type(model).__name__}: {line}") from error
    return engine, names


def why_not(module: nn.Module, config: QuantizationConfig) -> str:
    """Return the reason why a module of this class stays in fp32."""
    if isinstance(module, nn.Linear):
        if config.bits == 4 and module.in_features % _GROUP:
            return f"its number of inputs is not a multiple of {_GROUP}, which share a scale"
        return "transformers leaves the output head in fp32 for torchao"
    return "torchao quantizes Linears only"


def _indivisible(model: nn.Module, config: QuantizationConfig) -> set[str]:
    """Linears that 4 bits cannot take."""
    if config.bits != 4:
        return set()
    linears = {name: item for name, item in model.named_modules() if isinstance(item, nn.Linear)}
    return {name for name, linear in linears.items() if linear.in_features % _GROUP}


def _settings(config: QuantizationConfig, excluded: Collection[str]) -> TorchAoConfig:
    from transformers import TorchAoConfig

    tools = require("torchao.quantization", "torchao")
    if config.resolved_mode == "dynamic":
        kind = tools.Int8DynamicActivationInt8WeightConfig()
    elif config.bits == 8:
        kind = tools.Int8WeightOnlyConfig()
    else:
        # torchao's packed forms need a GPU; on a CPU each 4-bit number takes a byte.
        kind = tools.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, "int4"),  # noqa: B009  # torch's types do not know it
            granularity=tools.PerGroup(_GROUP),
        )
    return TorchAoConfig(kind, modules_to_not_convert=sorted(excluded) or None)


def _is_quantized(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and type(weight.data).__module__.startswith("torchao")
