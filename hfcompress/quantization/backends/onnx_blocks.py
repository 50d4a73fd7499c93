"""Products whose weights and activations have a scale for each block of inputs (MatMulNBits).

ONNX Runtime rounds each token's activations block by block when it runs the operator, so that one
large value costs precision in its own block of its own token only.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hfcompress.quantization.backends.onnx_graph import CONTRIB, QUANTIZED, quantize_tables
from hfcompress.quantization.embedding_tables import quantize_groups
from hfcompress.utils import require

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

# Integers for the activations, too; the operator's default computes with fp32 ones.
_INTEGER_ACTIVATIONS = 4
_ZERO_POINT = 128


def quantize_blocks(
    model: ModelProto,
    folder: Path,
    excluded: Collection[str],
    block: int,
    embedding_bits: int | None,
) -> None:
    """Replace products with constant weights, and store embedding tables as integers.

    Args:
        model: its operations are named after their modules, its constants may be external; changed
            in place.
        folder: of the external data.
        excluded: modules that stay in fp32.
        block: inputs that share a scale, a power of two from 16.
        embedding_bits: of `quantize_tables`; None leaves tables as they are.

    Raises:
        ModelError: NaN in a table.
    """
    onnx = require("onnx", "onnx")
    onnx.load_external_data_for_model(model, str(folder))
    if embedding_bits is not None:
        quantize_tables(model, embedding_bits, excluded)
    graph = model.graph
    weights = {item.name: item for item in graph.initializer}
    made: list[NodeProto] = []
    for node in graph.node:
        item = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if item is None or not node.name or node.name in excluded or len(item.dims) != 2:
            made.append(node)
            continue
        made += _product(graph, node, onnx.numpy_helper.to_array(item), block)
        graph.initializer.remove(item)
    del graph.node[:]
    graph.node.extend(made)
    if all(item.domain != CONTRIB for item in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))


def _product(
    graph: GraphProto, node: NodeProto, weight: NDArray[np.float32], block: int
) -> list[NodeProto]:
    """Return the nodes of a product, and add its integers and fp16 scales to the graph.

    Args:
        graph: of the product.
        node: the product in fp32.
        weight: [inputs, outputs].
        block: inputs that share a scale.
    """
    onnx = require("onnx", "onnx")
    inputs, outputs = weight.shape
    count = -(-inputs // block)
    padded = np.zeros((outputs, count * block), np.float32)
    padded[:, :inputs] = weight.T
    values, scales = quantize_groups(padded.reshape(-1, block), 8)
    name = f"{node.name}.weight"
    integers = (values.astype(np.int16) + _ZERO_POINT).astype(np.uint8)
    for suffix, array in (
        (QUANTIZED, integers.reshape(outputs, count, block)),
        ("_scale_half", scales.reshape(outputs, count)),
    ):
        graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}{suffix}"))
    make = onnx.helper.make_node
    cast = make("Cast", [f"{name}_scale_half"], [f"{name}_scale"], to=onnx.TensorProto.FLOAT)
    product = make(
        "MatMulNBits",
        [node.input[0], f"{name}{QUANTIZED}", f"{name}_scale"],
        [node.output[0]],
        node.name,
        domain=CONTRIB,
        K=inputs,
        N=outputs,
        bits=8,
        block_size=block,
        accuracy_level=_INTEGER_ACTIVATIONS,
    )
    return [cast, product]
