"""ONNX Runtime's dynamic quantizer, some weights at a time.

The quantizer holds the graph that it is given three times over. So it is given the graph without
its large weights, which stand there as inputs, but for those of one part.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from hfcompress.quantization.backends.onnx_graph import quantize_tables
from hfcompress.utils import require

# Of fp32 weights in one part, about; the products of one input stay together whatever they take.
PART_BYTES = 16 * 2**20
_SMALL = 2**16
"""Bytes up to which a constant stays in the graph."""


class WeightStore:
    """The large constants of a graph, out of it; their numbers are read when they are needed.

    Args:
        model: an ``onnx.ModelProto``, loaded with or without its external data; changed in place:
            its large constants become inputs.
        folder: where the external data lie.
    """

    def __init__(self, model: Any, folder: Path) -> None:
        self._onnx = require("onnx", "onnx")
        self._folder = folder
        self._away: dict[str, Any] = {}
        self.take(model)
        for item in model.graph.initializer:
            self._load(item)

    def take(self, model: Any) -> None:
        """Take all large constants out of a graph."""
        for item in [item for item in model.graph.initializer if _bytes(item) > _SMALL]:
            kind = self._onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims)
            model.graph.input.append(kind)
            self._away[item.name] = self._own(item)
            model.graph.initializer.remove(item)

    def _own(self, item: Any) -> Any:
        # A message frees nothing before it goes itself: numbers are kept in messages of their own.
        own = self._onnx.TensorProto()
        own.CopyFrom(item)
        return own

    def bytes(self, name: str) -> int:
        """Of one constant; 0 where it is not away."""
        return _bytes(self._away[name]) if name in self._away else 0

    def put_back(self, model: Any, names: Collection[str] | None = None) -> None:
        """Make constants of inputs again.

        Args:
            model: changed in place.
            names: which; None takes all that are away.
        """
        for name in [name for name in self._away if names is None or name in names]:
            item = self._away.pop(name)
            self._load(item)
            (stand_in,) = (one for one in model.graph.input if one.name == name)
            model.graph.input.remove(stand_in)
            model.graph.initializer.append(item)

    def _load(self, item: Any) -> None:
        helper = self._onnx.external_data_helper
        if helper.uses_external_data(item):
            helper.load_external_data_for_tensor(item, str(self._folder))
            item.data_location = self._onnx.TensorProto.DEFAULT
            del item.external_data[:]


def quantize_weights(
    model: Any,
    folder: Path,
    excluded: Collection[str],
    options: dict[str, Any],
    embedding_bits: int | None,
) -> Any:
    """Products with constant weights in int8, dynamically, and tables of embeddings as integers.

    Args:
        model: an ``onnx.ModelProto``, its operations called as their modules are; it is used up.
        folder: of the model's external data; files are made and removed there.
        excluded: modules that stay in fp32.
        options: of ``onnxruntime.quantization.quantize_dynamic``.
        embedding_bits: of `quantize_tables`; None leaves tables as they are.

    Returns:
        Another ``onnx.ModelProto``, all constants in it.
    """
    onnx = require("onnx", "onnx")
    tools = require("onnxruntime.quantization", "onnx")
    store = WeightStore(model, folder)
    made = folder / "part.onnx"
    if embedding_bits is not None:
        tables = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
        store.put_back(model, tables)
        quantize_tables(model, embedding_bits, excluded)
        store.take(model)
        onnx.save(model, str(made))
        model = onnx.load(str(made))
    for names in list(_parts(model, store, excluded)):
        store.put_back(model, names)
        del model.graph.value_info[:]  # of the part before; the quantizer infers them anew
        tools.quantize_dynamic(model, str(made), **options)
        model = onnx.load(str(made))
        store.take(model)
        onnx.save(model, str(made))
        model = onnx.load(str(made))
    made.unlink(missing_ok=True)
    store.put_back(model)
    return model


def _parts(model: Any, store: WeightStore, excluded: Collection[str]) -> Iterator[list[str]]:
    """Weights that are quantized together. Products of one input are: its integers are shared."""
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and store.bytes(node.input[1]) and node.name not in excluded:
            readers.setdefault(node.input[0], []).append(node.input[1])
    part: list[str] = []
    for names in list(readers.values()):
        if part and sum(map(store.bytes, [*part, *names])) > PART_BYTES:
            yield part
            part = []
        part += names
    yield part  # also where there is none: small weights are in the graph all the time


def _bytes(item: Any) -> int:
    return 4 * int(math.prod(item.dims))
