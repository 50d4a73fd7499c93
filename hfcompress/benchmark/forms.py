"""The forms of a checkpoint that a bench runs: bf16 weights, and quantized folders in the cache."""

from __future__ import annotations

import copy
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hfcompress.benchmark.kinds import EngineKind
from hfcompress.benchmarking.inputs import IMAGE, input_spec, make_inputs
from hfcompress.files import cache_folder
from hfcompress.models.loading import LoadedModel
from hfcompress.quantization.backends.torch import TorchEngine
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays
from hfcompress.quantization.folder import MANIFEST
from hfcompress.quantization.quantize import quantize

# Enough for ranges of activations; what a bench asks is speed, not accuracy.
_CALIBRATION = (8, 32)


class Bf16Engine(TorchEngine):
    """A copy with bf16 weights, which computes in bf16."""

    def __init__(self, model: PreTrainedModel) -> None:
        half: Any = copy.deepcopy(model)
        super().__init__(half.to(torch.bfloat16))

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Logits of one batch; pixels become bf16 first."""
        if IMAGE not in arrays:
            return super().logits(arrays)
        with torch.inference_mode():
            pixels = torch.from_numpy(arrays[IMAGE]).bfloat16()
            found: Any = self.model(pixel_values=pixels).logits.float().numpy()
        return np.asarray(found, np.float32)


def quantized_folder(loaded: LoadedModel, kind: EngineKind) -> Path:
    """The model in the engine's form, from the cache where it was made before."""
    settings = QuantizationConfig.parse(kind.quantization)
    folder = cache_folder() / "bench" / _key(loaded.fingerprint, settings)
    if not (folder / MANIFEST).is_file():
        model = loaded.model
        batches = []
        if settings.needs_calibration:
            names = TorchEngine(model).inputs
            arrays = make_inputs(input_spec(model.config, names), *_CALIBRATION)
            batches = [{key: torch.from_numpy(value) for key, value in arrays.items()}]
        quantize(model, settings, batches).save(folder)
    return folder


def _key(fingerprint: str, settings: QuantizationConfig) -> str:
    packages = ("hfcompress", settings.backend, "torch", "transformers", "nncf")
    parts = [fingerprint, settings.plain(), {name: _version(name) for name in packages}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
