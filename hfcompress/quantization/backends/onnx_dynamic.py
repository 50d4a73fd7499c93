"""ONNX Runtime's dynamic quantizer, some weights at a time.

The quantizer keeps three copies of its graph in memory. So it receives the graph in parts: all
large weights are graph inputs, except those of the part that is quantized.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hfcompress.quantization.backends.onnx_graph import quantize_tables
from hfcompress.utils import require

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

# Approximate fp32 weight bytes of one part; products of one input are never separated.
PART_BYTES = 16 * 2**20
_SMALL = 2**16
"""Bytes up to which a constant stays in the graph."""


class WeightStore:
    """Keeps the large constants of a graph outside it, and reads their values when they are needed.

    Args:
        model: loaded with or without its external data; changed in place: its large constants
            become inputs.
        folder: of the external data.
    """

    def __init__(self, model: ModelProto, folder: Path) -> None:
        self._onnx = require("onnx", "onnx")
        self._folder = folder
        self._stored: dict[str, TensorProto] = {}
        self.take(model)
        for item in model.graph.initializer:
            self._load(item)

    def take(self, model: ModelProto) -> None:
        """Move all large constants of a graph into the store."""
        for item in [item for item in model.graph.initializer if _bytes(item) > _SMALL]:
            kind = self._onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims)
            model.graph.input.append(kind)
            self._stored[item.name] = self._own(item)
            model.graph.initializer.remove(item)

    def _own(self, item: TensorProto) -> TensorProto:
        # A protobuf message keeps the memory of removed items, so copy each tensor out of it.
        own: TensorProto = self._onnx.TensorProto()
        own.CopyFrom(item)
        return own

    def bytes(self, name: str) -> int:
        """Return the bytes of one constant; 0 if it is in the graph."""
        return _bytes(self._stored[name]) if name in self._stored else 0

    def put_back(self, model: ModelProto, names: Collection[str] | None = None) -> None:
        """Move constants from the store back into the graph.

        Args:
            model: changed in place.
            names: which constants; None moves all.
        """
        for name in [name for name in self._stored if names is None or name in names]:
            item = self._stored.pop(name)
            self._load(item)
            (stand_in,) = (one for one in model.graph.input if one.name == name)
            model.graph.input.remove(stand_in)
            model.graph.initializer.append(item)

    def _load(self, item: TensorProto) -> None:
        helper = self._onnx.external_data_helper
        if helper.uses_external_data(item):
            helper.load_external_data_for_tensor(item, str(self._folder))
            item.data_location = self._onnx.TensorProto.DEFAULT
            del item.external_data[:]


def quantize_weights(
    model: ModelProto,
    folder: Path,
    excluded: Collection[str],
    options: Mapping[str, object],
    embedding_bits: int | None,
) -> ModelProto:
    """Quantize products with constant weights dynamically, and store embedding tables as integers.

    Args:
        model: its operations are named after their modules; changed, so do not use it afterwards.
        folder: of the model's external data; temporary files are written there.
        excluded: modules that stay in fp32.
        options: of ``onnxruntime.quantization.quantize_dynamic``.
        embedding_bits: of `quantize_tables`; None leaves tables as they are.

    Returns:
        A new model that contains all constants.
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
        del model.graph.value_info[:]  # shapes of the previous part; the quantizer infers new ones
        tools.quantize_dynamic(model, str(made), **options)
        model = onnx.load(str(made))
        store.take(model)
        onnx.save(model, str(made))
        model = onnx.load(str(made))
    made.unlink(missing_ok=True)
    store.put_back(model)
    return model


def _parts(model: ModelProto, store: WeightStore, excluded: Collection[str]) -> Iterator[list[str]]:
    """Yield the weights of each part; products of one input share its integers and a part."""
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
    yield part  # also if it is empty, because small weights stay in the graph


def _bytes(item: TensorProto) -> int:
    return 4 * int(math.prod(item.dims))
