"""Activations of each token on a scale of their own, where an engine has one for a whole tensor.

y = x W is s (x / s) W for the largest absolute number s of each token's x. All tokens then fill the
same range, from -1 to 1, and the engine's one scale serves each as if it were its own: large tokens
no longer take the steps of small ones, and what a row gives depends no more on its batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from hfcompress.utils import require

_LEAST = 1e-12
_AXES, _FLOOR = "token_axes", "token_floor"


def scale_tokens(graph: Any, excluded: Collection[str]) -> None:
    """Divide the inputs of products by each token's largest, and multiply the outputs by it.

    Products of the same input share the division.

    Args:
        graph: an ``onnx.GraphProto`` in fp32 of opset 18 or later, its products called as their
            modules are; changed in place, its outputs are not.
        excluded: modules that stay in fp32.
    """
    onnx = require("onnx", "onnx")
    weights = {item.name for item in graph.initializer}
    made: list[Any] = []
    known: set[str] = set()
    for node in graph.node:
        product = node.op_type == "MatMul" and node.name and node.input[1] in weights
        if not product or node.name in excluded:
            made.append(node)
            continue
        source, output = node.input[0], node.output[0]
        if source not in known:
            known.add(source)
            made += _divided(source)
        node.input[0], node.output[0] = f"{source}_unit", f"{output}_unit"
        made.append(node)
        made.append(onnx.helper.make_node("Mul", [node.output[0], f"{source}_size"], [output]))
    del graph.node[:]
    graph.node.extend(made)
    if known:
        for name, value in ((_AXES, np.array([-1])), (_FLOOR, np.array(_LEAST, np.float32))):
            graph.initializer.append(onnx.numpy_helper.from_array(value, name))


def _divided(source: str) -> Iterator[Any]:
    onnx = require("onnx", "onnx")
    make = onnx.helper.make_node
    yield make("Abs", [source], [f"{source}_abs"])
    yield make("ReduceMax", [f"{source}_abs", _AXES], [f"{source}_max"], keepdims=1)
    yield make("Max", [f"{source}_max", _FLOOR], [f"{source}_size"])
    yield make("Div", [source, f"{source}_size"], [f"{source}_unit"])
