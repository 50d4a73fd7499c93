"""SmoothQuant (2211.10438): move outliers of activations into the weights before quantizing both.

A few channels of a transformer's activations are many times larger than the others, and one scale
for the tensor leaves few levels for the others. y = (x / s) (s W) is the same product for any
s above 0; s_j = max|x_j|^a / max|w_j|^(1 - a) shares the difficulty between both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hfcompress.inference import dense_logits
from hfcompress.models.architectures import compressible_modules
from hfcompress.quantization.engine import Arrays
from hfcompress.quantization.inputs import Classifier
from hfcompress.utils import require

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

Floats = NDArray[np.float32]
# Lower bound, so that channels that are zero in calibration keep a finite factor.
_LEAST = 1e-5


def largest_inputs(model: Classifier, batches: Sequence[Arrays]) -> dict[str, Floats]:
    """Return the largest absolute input of each product by channel: name -> fp32 [inputs].

    Args:
        model: fp32, in eval mode.
        batches: calibration inputs.
    """
    found: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest = inputs[0].detach().abs().flatten(0, -2).amax(0)
        known = found.get(name)
        found[name] = largest if known is None else torch.maximum(known, largest)

    hooks = [
        module.register_forward_pre_hook(partial(record, name))
        for name, module in compressible_modules(model).items()
        if not isinstance(module, nn.Conv2d)
    ]
    try:
        for batch in batches:
            dense_logits(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: largest.float().cpu().numpy() for name, largest in found.items()}


def smooth_products(
    graph: GraphProto, largest: Mapping[str, Floats], strength: float, excluded: Collection[str]
) -> None:
    """Divide the inputs of products by their factors, and multiply the weights by them.

    Products of the same input share a factor and one division.

    Args:
        graph: fp32, its products named after their modules; changed in place, with the same
            outputs.
        largest: from `largest_inputs`.
        strength: a, from 0 (only the weights' range counts) to 1 (only the activations' counts).
        excluded: modules that stay in fp32.
    """
    onnx = require("onnx", "onnx")
    tensors = {item.name: item for item in graph.initializer}
    groups: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        chosen = node.op_type == "MatMul" and node.name in largest and node.name not in excluded
        if chosen and node.input[1] in tensors:
            groups.setdefault(node.input[0], []).append(node)
    first: dict[int, NodeProto] = {}
    for source, nodes in groups.items():
        weights = [onnx.numpy_helper.to_array(tensors[node.input[1]]) for node in nodes]
        factors = _factors(largest[nodes[0].name], weights, strength)
        name = f"{source}_smooth"
        graph.initializer.append(onnx.numpy_helper.from_array(1 / factors, f"{name}_factors"))
        first[id(nodes[0])] = onnx.helper.make_node("Mul", [source, f"{name}_factors"], [name])
        for node, weight in zip(nodes, weights, strict=True):
            smoothed = onnx.numpy_helper.from_array(weight * factors[:, None], node.input[1])
            tensors[node.input[1]].CopyFrom(smoothed)
            node.input[0] = name
    ordered = [item for node in graph.node for item in (first.get(id(node)), node) if item]
    del graph.node[:]
    graph.node.extend(ordered)


def _factors(largest: Floats, weights: Sequence[Floats], strength: float) -> Floats:
    of_weights = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    numbers = np.maximum(largest, _LEAST) ** strength
    numbers /= np.maximum(of_weights, _LEAST) ** (1 - strength)
    factors: Floats = np.clip(numbers, _LEAST, 1 / _LEAST).astype(np.float32)
    return factors
