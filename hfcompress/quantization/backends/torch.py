"""torch: int8 Linears with dynamic activations, saved as a safetensors checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfcompress.checkpoint.save import save_compressed
from hfcompress.inference import dense_logits
from hfcompress.layers.int8_linear import Int8Linear
from hfcompress.measure.size import calculate_model_size
from hfcompress.models.architectures import compressible_modules
from hfcompress.models.loading import weights_hash
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import DYNAMIC_LEAVES_CONVOLUTIONS
from hfcompress.quantization.engine import Arrays, select_inputs
from hfcompress.quantization.onnx_export import input_names


class TorchEngine:
    """Runs a torch model that contains `Int8Linear`.

    Args:
        model: put into eval mode.
    """

    name = "torch"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.train(False)
        self.inputs = input_names(model)

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
        """Write a checkpoint that ``from_pretrained`` loads with hfcompress imported."""
        save_compressed(self.model, folder)


def load_engine(folder: Path, threads: int | None = None) -> TorchEngine:
    """Return the engine of a saved folder; torch's number of threads is the process's."""
    return TorchEngine(load_checkpoint(folder))


def load_checkpoint(folder: Path) -> PreTrainedModel:
    """Return the text or image classifier of a folder that ``save_pretrained`` wrote."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    names: tuple[str, ...] = getattr(config, "architectures", None) or ()
    images = any("ImageClassification" in name for name in names)
    name = f"AutoModelFor{'Image' if images else 'Sequence'}Classification"
    model: PreTrainedModel = getattr(transformers, name).from_pretrained(folder)
    return model


def quantize_model(
    model: PreTrainedModel,
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
    if isinstance(module, nn.Conv2d):
        return f"{DYNAMIC_LEAVES_CONVOLUTIONS}, in backend: onnxruntime or openvino"
    return "its weight is tied to an embedding"
