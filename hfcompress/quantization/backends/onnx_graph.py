"""Rewrites of a quantized ONNX graph: integer tables, scales of tokens, fewer bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hfcompress.quantization.embedding_tables import QuantizedTable, halved, quantize_table
from hfcompress.utils import require

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

QUANTIZED = "_quantized"
"""Suffix that ONNX Runtime's quantizer gives to integer weights."""
CONTRIB = "com.microsoft"
_SHORTEST_BLOCK = 16
_LINEAR = ("QuantizeLinear", "DequantizeLinear")
# For constants with fewer values, the Cast node costs more bytes than fp16 saves.
_WORTH_HALVING = 128
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def quantize_tables(model: ModelProto, bits: int, excluded: Collection[str]) -> None:
    """Store embedding tables as integers; a row becomes fp32 when it is looked up.

    ONNX Runtime's own quantizer uses one scale for a whole table, set by its largest value.

    Args:
        model: its lookups are named after their modules; changed in place.
        bits: 4 or 8.
        excluded: modules that stay in fp32.

    Raises:
        ModelError: NaN in a table.
    """
    onnx = require("onnx", "onnx")
    graph = model.graph
    tensors = {item.name: item for item in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    made: list[NodeProto] = []
    for node in graph.node:
        item = tensors.get(node.input[0]) if node.op_type == "Gather" else None
        known = item is not None and item.name == f"{node.name}.weight"
        if (
            item is None
            or not known
            or node.name in excluded
            or uses[item.name] > 1
            or len(item.dims) != 2
        ):
            made.append(node)
            continue
        table = quantize_table(onnx.numpy_helper.to_array(item), bits)
        graph.initializer.remove(item)
        made += _lookup(graph, node, table)
    del graph.node[:]
    graph.node.extend(made)
    if any(node.domain == CONTRIB for node in made) and not _knows_contrib(model):
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))


def _lookup(graph: GraphProto, node: NodeProto, table: QuantizedTable) -> Iterator[NodeProto]:
    """Yield the nodes that replace a lookup: integer rows times their scales."""
    onnx = require("onnx", "onnx")
    make, name = onnx.helper.make_node, node.name
    weight, scale = f"{name}.weight{QUANTIZED}", f"{name}.weight_scale"
    rows, columns = table.values.shape
    ids, output = node.input[1], node.output[0]
    as_fp32 = {"to": onnx.TensorProto.FLOAT}
    if table.bits == 8:
        _add(graph, weight, table.values)
        _add(graph, scale, table.scales)
        yield make("Gather", [weight, ids], [f"{name}_integers"], name, axis=0)
        yield make("Gather", [scale, ids], [f"{name}_halves"], axis=0)
        yield make("Cast", [f"{name}_integers"], [f"{name}_numbers"], **as_fp32)
        yield make("Cast", [f"{name}_halves"], [f"{name}_steps"], **as_fp32)
        yield make("Mul", [f"{name}_numbers", f"{name}_steps"], [output])
        return
    block = table.group  # a power of two, and one block may be longer than the row
    while block < _SHORTEST_BLOCK or block & (block - 1):
        block = max(_SHORTEST_BLOCK, 1 << block.bit_length())
    _add(graph, weight, table.packed(shift=8).reshape(rows, columns // 2))
    _add(graph, scale, table.scales)
    options = {"bits": 4, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    yield make(
        "GatherBlockQuantized", [weight, ids, scale], [f"{name}_halves"], name, domain=CONTRIB,
        **options,
    )  # fmt: skip
    yield make("Cast", [f"{name}_halves"], [output], **as_fp32)


def compact(model: ModelProto) -> None:
    """Remove zero points that are 0, shorten names, and store vectors in fp16.

    Weights and the operations that read them keep their names.

    Args:
        model: quantized; changed in place.
    """
    onnx = require("onnx", "onnx")
    graph = model.graph
    tensors = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulInteger" and len(node.input) == 4:
            item = tensors.get(node.input[3])
            if item is not None and not onnx.numpy_helper.to_array(item).any():
                del node.input[3]
    halve_constants(graph)
    used = {name for node in graph.node for name in node.input}
    for item in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(item)
    if not any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        _shorten(graph)


def halve_constants(graph: GraphProto) -> None:
    """Store biases, norms and scales in fp16; ONNX Runtime converts them when it loads them.

    Args:
        graph: quantized; changed in place. Scales of static quantization stay fp32, because ONNX
            Runtime only fuses constant fp32 scales.
    """
    onnx = require("onnx", "onnx")
    fixed = {name for node in graph.node if node.op_type in _LINEAR for name in node.input}
    made: list[NodeProto] = []
    for item in graph.initializer:
        if item.data_type != onnx.TensorProto.FLOAT or len(item.dims) != 1 or item.name in fixed:
            continue
        kept = halved(onnx.numpy_helper.to_array(item))
        if item.dims[0] < _WORTH_HALVING or kept is None:
            continue
        half = f"{item.name}_half"
        made.append(onnx.helper.make_node("Cast", [half], [item.name], to=onnx.TensorProto.FLOAT))
        item.CopyFrom(onnx.numpy_helper.from_array(kept, half))
    made += graph.node
    del graph.node[:]
    graph.node.extend(made)


def _shorten(graph: GraphProto) -> None:
    fixed = {item.name for item in (*graph.input, *graph.output)}
    fixed |= {item.name for item in graph.initializer if ".weight" in item.name}
    fresh = (name for name in map(_code, count()) if name not in fixed)
    short: dict[str, str] = {"": "", **{name: name for name in fixed}}
    for item in graph.initializer:
        if item.name not in short:
            short[item.name] = next(fresh)
        item.name = short[item.name]
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name not in short:
                    short[name] = next(fresh)
                names[place] = short[name]
        weights = [name for name in node.input if name.endswith(f".weight{QUANTIZED}")]
        node.name = weights[0].removesuffix(f".weight{QUANTIZED}") if weights else ""
        node.doc_string = ""
    del graph.value_info[:]


def _code(number: int) -> str:
    digits = _DIGITS[number % len(_DIGITS)]
    return digits if number < len(_DIGITS) else _code(number // len(_DIGITS) - 1) + digits


def _add(graph: GraphProto, name: str, values: NDArray[np.generic]) -> None:
    onnx = require("onnx", "onnx")
    graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))


def _knows_contrib(model: ModelProto) -> bool:
    return any(item.domain == CONTRIB for item in model.opset_import)


_LEAST = 1e-12
_AXES, _FLOOR = "token_axes", "token_floor"


def scale_tokens(graph: GraphProto, excluded: Collection[str]) -> None:
    """Divide the inputs of products by each token's largest value, and multiply the outputs by it.

    Products of the same input share the division.

    Args:
        graph: fp32, opset 18 or later, its products named after their modules; changed in place,
            with the same outputs.
        excluded: modules that stay in fp32.
    """
    onnx = require("onnx", "onnx")
    weights = {item.name for item in graph.initializer}
    made: list[NodeProto] = []
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


def _divided(source: str) -> Iterator[NodeProto]:
    onnx = require("onnx", "onnx")
    make = onnx.helper.make_node
    yield make("Abs", [source], [f"{source}_abs"])
    yield make("ReduceMax", [f"{source}_abs", _AXES], [f"{source}_max"], keepdims=1)
    yield make("Max", [f"{source}_max", _FLOOR], [f"{source}_size"])
    yield make("Div", [source, f"{source}_size"], [f"{source}_unit"])
