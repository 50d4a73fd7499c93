"""ONNX files that tests share: models of one structure take each other's graph.

An export takes seconds, and its graph depends on the names and shapes of the weights alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hfcompress.quantization.engine import TEXT_INPUTS

# The weights' types and shapes count by themselves, and `shrink` tells config.json of the latter.
_NOT_IN_A_GRAPH = (
    "_name_or_path", "architectures", "id2label", "label2id", "problem_type", "dtype",
    "initializer_range", "use_cache", "quantization_config",
)  # fmt: skip
_NOT_IN_A_FORWARD = ("training", "name_or_path", "problem_type", "initializer_range")
_PLAIN = (bool, int, float, str, tuple)
_TURNED = "turned.json"


def structure_of(model: nn.Module, **more: object) -> str:
    """Digest of what an exported graph depends on: everything but the values of the weights.

    The exporter may leave out a weight whose values are all zero or one, so that counts.
    """
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    example = getattr(model, "example", {})  # of a plain module, which is inside
    modules = []
    for name, module in vars(model).get("inner", model).named_modules():
        fields = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, _PLAIN) and key not in _NOT_IN_A_FORWARD
        }
        code = type(module).forward.__code__
        does = (code.co_code.hex(), code.co_consts, code.co_names)
        modules.append((name, type(module).__qualname__, module.extra_repr(), fields, does))
    described = {
        "config": {name: settings[name] for name in settings if name not in _NOT_IN_A_GRAPH},
        "modules": modules,
        "inputs": [
            (name, array.dtype, () if name in TEXT_INPUTS else array.shape[1:])
            for name, array in example.items()
        ],
        "weights": [
            (
                name,
                value.dtype,
                value.shape,
                bool((value == (value.flatten()[:1] if value.numel() else 0)).all()),
            )
            for name, value in _tensors(model).items()
        ],
        **more,
    }
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keep_template(path: Path, model: nn.Module, folder: Path) -> None:
    """Keep an exported file for other models of the structure, if its arrays are weights by name.

    An array that is computed from weights, such as a folded norm's, makes it no template.
    """
    import onnx
    from onnx import numpy_helper

    weights, turned = _tensors(model), dict[str, bool]()
    for value in onnx.load(str(path)).graph.initializer:
        array = numpy_helper.to_array(value)
        if not _is_weight(array):
            continue
        weight = _array(weights, value.name)
        fits = [
            turn
            for turn, given in ((False, weight), (True, None if weight is None else weight.T))
            if given is not None and np.array_equal(array, given)
        ]
        if not fits or (len(fits) == 2 and array.ndim > 1 and np.ptp(array)):
            return
        turned[value.name] = fits[0]
    _write(folder / _TURNED, json.dumps(turned).encode())
    _write(folder / path.name, path.read_bytes())


def fill_template(folder: Path, model: nn.Module, path: Path) -> bool:
    """Write a model's file from the template of its structure; False if there is none."""
    import onnx
    from onnx import numpy_helper

    template = folder / path.name
    if not template.exists():
        return False
    weights, graph_model = _tensors(model), onnx.load(str(template))
    turned = json.loads((folder / _TURNED).read_text())
    for value in graph_model.graph.initializer:
        if value.name in turned:
            weight = _array(weights, value.name)
            assert weight is not None
            array = np.ascontiguousarray(weight.T if turned[value.name] else weight)
            value.CopyFrom(numpy_helper.from_array(array, value.name))
    _write(path, graph_model.SerializeToString())
    return True


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    parameters = model.named_parameters(remove_duplicate=False)
    return dict(parameters) | dict(model.named_buffers(remove_duplicate=False))


def _array(weights: dict[str, Tensor], name: str) -> NDArray[np.float32] | None:
    weight = weights.get(name.removeprefix("model."), weights.get(name))
    return None if weight is None else weight.detach().float().numpy()


def _is_weight(array: NDArray[Any]) -> bool:
    return array.dtype.kind == "f" and array.size > 1


def _write(path: Path, content: bytes) -> None:
    """Write a file at once: other workers read it as soon as it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
