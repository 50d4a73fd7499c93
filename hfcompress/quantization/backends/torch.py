"""torch: Linears in int8, activations quantized as they come; saved in our own safetensors form."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

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
    """A torch model with `Int8Linear` in it.

    Args:
        model: put into eval mode.
    """

    name = "torch"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.train(False)
        self.inputs = input_names(model)

    @property
    def bytes(self) -> int:
        """Bytes of its safetensors file."""
        return calculate_model_size(self.model)

    @property
    def digest(self) -> str:
        """Hash of its tensors."""
        return weights_hash(self.model)

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Logits of one batch."""
        return dense_logits(self.model, select_inputs(arrays, self.inputs))

    def write(self, folder: Path) -> None:
        """A checkpoint that ``from_pretrained`` loads with hfcompress imported."""
        save_compressed(self.model, folder)


def load_engine(folder: Path, threads: int | None = None) -> TorchEngine:
    """The engine of a saved folder; torch has one number of threads for the whole process."""
    return TorchEngine(load_checkpoint(folder))


def load_checkpoint(folder: Path) -> PreTrainedModel:
    """The classifier in a folder that ``save_pretrained`` wrote, of texts or of images."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    names: tuple[str, ...] = getattr(config, "architectures", None) or ()
    images = any("ImageClassification" in name for name in names)
    kind: Any = getattr(
        transformers, f"AutoModelFor{'Image' if images else 'Sequence'}Classification"
    )
    model: PreTrainedModel = kind.from_pretrained(folder)
    return model


def quantize_model(
    model: PreTrainedModel,
    config: QuantizationConfig,
    excluded: Collection[str],
    batches: Sequence[Arrays],
) -> tuple[TorchEngine, set[str]]:
    """Replace every Linear and Conv1D of a copy.

    Args:
        model: fp32; left as it was.
        config: of this backend.
        excluded: modules that stay in fp32.
        batches: not needed.

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
    # The fp32 weights that are replaced are not copied.
    shared: dict[int, Any] = {
        id(module): Int8Linear.of(module, config.per_channel) for module in chosen.values()
    }
    return TorchEngine(copy.deepcopy(model, shared)), set(chosen)


def why_not(module: nn.Module, config: QuantizationConfig) -> str:
    """Why a module of this class stays in fp32."""
    if isinstance(module, nn.Embedding):
        return "torch quantizes matrix products only; backend: onnxruntime takes tables"
    if isinstance(module, nn.Conv2d):
        return f"{DYNAMIC_LEAVES_CONVOLUTIONS}, in backend: onnxruntime or openvino"
    return "its weight is tied to an embedding"
