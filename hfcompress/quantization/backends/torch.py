"""torch: int8 Linears with dynamic activations, saved as a safetensors checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfcompress.checkpoint.save import save_compressed
from hfcompress.errors import ModelError
from hfcompress.inference import dense_logits
from hfcompress.layers.int8_linear import Int8Linear
from hfcompress.measure.macs import CONVOLUTIONS, has_own_forward
from hfcompress.measure.size import calculate_model_size
from hfcompress.models.architectures import compressible_modules
from hfcompress.models.checkpoint_checks import check_files, check_layers, checkpoint_errors
from hfcompress.models.cross_encoder import AutoCrossEncoder, is_cross_encoder_folder
from hfcompress.models.embedding_layout import has_layout
from hfcompress.models.loading import weights_hash
from hfcompress.models.modeling_embedding import AutoEmbeddingModel
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import DYNAMIC_LEAVES_CONVOLUTIONS
from hfcompress.quantization.engine import Arrays, select_inputs
from hfcompress.quantization.inputs import Classifier, PlainModel
from hfcompress.quantization.onnx_export import input_names
from hfcompress.tasks.registry import find_task, infer_task

_MISMATCHES = {
    "missing_keys": "is missing in the file",
    "mismatched_keys": "has another shape in the file",
    "unexpected_keys": "is in the file and not in the model",
}


class TorchEngine:
    """Runs a torch model that contains `Int8Linear`.

    Args:
        model: put into eval mode.
        inputs: names of what it reads; by default those of a transformers model.
    """

    name = "torch"

    def __init__(self, model: Classifier, inputs: tuple[str, ...] | None = None) -> None:
        self.model = model.train(False)
        self.inputs = input_names(model) if inputs is None else inputs

    @property
    def bytes(self) -> int:
        """Return the bytes of its safetensors file."""
        return calculate_model_size(self.model)

    @property
    def digest(self) -> str:
        """Return a hash of its tensors."""
        return weights_hash(self.model)

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the logits of one batch."""
        return dense_logits(self.model, select_inputs(arrays, self.inputs))

    def write(self, folder: Path) -> None:
        """Write a checkpoint that ``from_pretrained`` loads with hfcompress imported.

        Raises:
            ModelError: a module that only its own code can build again.
        """
        if isinstance(self.model, PlainModel):
            raise ModelError(
                f"a folder cannot contain the code of {type(self.model).__name__}, which backend "
                f"torch needs to load it; quantize with backend: onnxruntime or openvino to save it"
            )
        save_compressed(self.model, folder)


def load_engine(folder: Path, threads: int | None = None) -> TorchEngine:
    """Return the engine of a saved folder; torch's number of threads is the process's."""
    return TorchEngine(load_checkpoint(folder))


def load_checkpoint(folder: Path) -> PreTrainedModel:
    """Return the model of a folder that ``save_pretrained`` wrote.

    Only safetensors are read, and no code of the folder is run.

    Raises:
        ModelError: files that transformers cannot load without code of the folder, or tensors that
            do not match the record in ``config.json``.
    """
    options = {"trust_remote_code": False, "local_files_only": True}
    name = f"the model in {str(folder)!r}"
    check_files(folder, name)
    with checkpoint_errors(name):
        config = AutoConfig.from_pretrained(folder, **options)  # nosec B615 # local
        check_layers(folder, config, name)
        auto: Any = AutoEmbeddingModel
        if is_cross_encoder_folder(folder):
            auto = AutoCrossEncoder
        elif not has_layout(folder):
            named = getattr(config, "architectures", None)
            task = infer_task(config, name) if named else find_task("text-classification")
            auto = task.auto_class()
        model: PreTrainedModel
        model, info = auto.from_pretrained(
            folder,
            **options,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
        )
    _check_tensors(folder, info)
    return model


def _check_tensors(folder: Path, info: Mapping[str, Iterable[object]]) -> None:
    """Refuse a checkpoint whose tensors are not those of the model, as loading reports them.

    Raises:
        ModelError: a tensor is missing, left over or of another shape.
    """
    for kind, problem in _MISMATCHES.items():
        names = sorted(str(item[0] if isinstance(item, tuple) else item) for item in info[kind])
        if names:
            raise ModelError(
                f"{str(folder)!r}: the tensor {names[0]!r} {problem}; model.safetensors and "
                f"config.json do not belong together, or the record of its int8 modules is "
                f"incomplete; save the model again"
            )


def quantize_model(
    model: Classifier,
    config: QuantizationConfig,
    excluded: Collection[str],
    batches: Sequence[Arrays],
) -> tuple[TorchEngine, set[str]]:
    """Copy a model and replace every Linear and Conv1D of the copy.

    Args:
        model: fp32; left as it was.
        config: of this backend.
        excluded: modules that stay in fp32.
        batches: not used.

    Returns:
        The engine, and the names of the modules that are quantized.

    Raises:
        ModelError: NaN or infinity in a weight.
    """
    tied = {id(item.weight) for item in model.modules() if isinstance(item, nn.Embedding)}
    chosen = {
        name: module
        for name, module in compressible_modules(model).items()
        if isinstance(module, (nn.Linear, Conv1D))
        and not has_own_forward(module)
        and name not in excluded
        and id(module.weight) not in tied
    }
    # deepcopy takes these modules from its memo, so the fp32 weights that go are not copied.
    shared: dict[int, nn.Module] = {
        id(module): Int8Linear.of(module, config.per_channel) for module in chosen.values()
    }
    return TorchEngine(copy.deepcopy(model, shared)), set(chosen)


def why_not(module: nn.Module, config: QuantizationConfig) -> str:
    """Return the reason why a module of this class stays in fp32."""
    if isinstance(module, nn.Embedding):
        return "torch quantizes matrix products only; backend: onnxruntime takes tables"
    if isinstance(module, CONVOLUTIONS):
        return f"{DYNAMIC_LEAVES_CONVOLUTIONS}, in backend: onnxruntime or openvino"
    if has_own_forward(module):
        return "its class computes more than a matrix product"
    return "its weight is tied to an embedding"
