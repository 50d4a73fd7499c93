"""Rewrites that make an OpenVINO model small on disk: integer tables, fp16 vectors, short XML."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree  # nosec B405 # reads what OpenVINO has just written

import numpy as np

from hfcompress.quantization.embedding_tables import QuantizedTable, halved, quantize_table
from hfcompress.utils import require

if TYPE_CHECKING:
    from openvino import Model, Node

# For constants with fewer values, the Convert node costs more bytes than fp16 saves.
_WORTH_HALVING = 128
_DEFAULTS = {
    "auto_broadcast": "numpy", "auto_pad": "explicit", "rounding_type": "floor",
    "index_element_type": "i64", "transpose_a": "false", "transpose_b": "false",
}  # fmt: skip
"""Attributes with the values that OpenVINO gives them where a file has none; so have strides and
dilations of 1, and pads of 0."""
_SIDES = {"strides": "1", "dilations": "1", "pads_begin": "0", "pads_end": "0"}
_BODIES = ("body", "then_body", "else_body")


def quantize_tables(graph: Model, names: Collection[str], bits: int) -> None:
    """Store embedding tables as integers; a row becomes fp32 when it is looked up.

    Args:
        graph: its lookups are named after their modules; changed in place.
        names: the modules.
        bits: 4 or 8.

    Raises:
        ModelError: NaN in a table.
    """
    for node in graph.get_ops():
        if node.get_type_name() != "Gather" or node.get_friendly_name() not in names:
            continue
        source = node.input_value(0).get_node()
        if source.get_type_name() == "Constant" and len(source.get_output_shape(0)) == 2:
            table = quantize_table(np.asarray(source.data, np.float32), bits)
            node.input(0).replace_source_output(_restored(table).output(0))


def _restored(table: QuantizedTable) -> Node:
    """Return integers times scales, in the form that the CPU plugin keeps packed in memory."""
    openvino = require("openvino", "openvino")
    operations = require("openvino.opset13", "openvino")
    rows, columns = table.values.shape
    groups = columns // table.group
    shape = [rows, columns] if groups == 1 else [rows, groups, table.group]
    if table.bits == 8:
        numbers = operations.constant(table.values)
    else:
        kept = openvino.Tensor(table.packed(), openvino.Shape(shape), openvino.Type.i4)
        numbers = operations.constant(kept, shared_memory=False)
    scales = operations.constant(table.scales.reshape(*shape[:-1], 1))
    whole = operations.multiply(operations.convert(numbers, "f16"), scales)
    if groups > 1:
        whole = operations.reshape(whole, operations.constant(np.array([rows, columns])), False)
    return operations.convert(whole, "f32")


def halve_constants(graph: Model) -> None:
    """Store biases, norms and scales in fp16; computation stays in fp32.

    Args:
        graph: changed in place; matrices (two dimensions longer than one) stay as they are.
    """
    operations = require("openvino.opset13", "openvino")
    for node in graph.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().to_string() != "f32":
            continue
        shape = list(node.get_output_shape(0))
        if max(shape, default=1) < _WORTH_HALVING or sum(size > 1 for size in shape) != 1:
            continue
        kept = halved(np.asarray(node.data, np.float32))
        if kept is None:
            continue
        targets = list(node.output(0).get_target_inputs())
        half = operations.convert(operations.constant(kept), "f32")
        for target in targets:
            target.replace_source_output(half.output(0))


def compact(path: Path, names: Collection[str]) -> None:
    """Rewrite ``model.xml`` without what OpenVINO infers when it loads the file.

    Removes shapes between layers, generated names, conversion notes and repeated constants;
    inputs, outputs and modules keep their names.

    Args:
        path: the file; it is replaced atomically.
        names: layers that keep their name.
    """
    tree = ElementTree.parse(path)  # nosec B314 # as above
    root = tree.getroot()
    layers, edges = root.find("layers"), root.find("edges")
    if layers is None or edges is None or any(True for tag in _BODIES for _ in root.iter(tag)):
        return
    _merge_constants(layers, edges, path.with_suffix(".bin"))
    for notes in root.findall("rt_info"):
        root.remove(notes)
    ends = {edge.get("from-layer") for edge in edges if _kind(layers, edge) == "Result"}
    for layer in layers:
        number, kind = layer.get("id"), layer.get("type")
        if kind not in ("Parameter", "Result") and layer.get("name") not in names:
            layer.set("name", "")
        for port in layer.iter("port"):
            for size in list(port):
                port.remove(size)
            if kind != "Parameter" and number not in ends:
                port.attrib.pop("names", None)
        for port in layer.iterfind("input/port"):
            port.attrib.pop("precision", None)
        _drop_defaults(layer)
    for element in root.iter():
        element.text = element.tail = None
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f'<?xml version="1.0"?>{text.replace(" />", "/>")}', encoding="utf-8")
    os.replace(temporary, path)


def _drop_defaults(layer: ElementTree.Element) -> None:
    data = layer.find("data")
    if data is None:
        return
    for name, value in list(data.attrib.items()):
        sides = set(value.replace(",", " ").split())
        if _DEFAULTS.get(name) == value or sides == {_SIDES.get(name)}:
            del data.attrib[name]
        else:
            data.set(name, value.replace(", ", ","))
    if not data.attrib:
        layer.remove(data)


def _kind(layers: ElementTree.Element, edge: ElementTree.Element) -> str | None:
    target = layers.find(f"layer[@id='{edge.get('to-layer')}']")
    return None if target is None else target.get("type")


def _merge_constants(layers: ElementTree.Element, edges: ElementTree.Element, file: Path) -> None:
    """Merge constants of one type, shape and value."""
    first: dict[tuple[str | None, str | None, bytes], str] = {}
    replaced: dict[str, str] = {}
    values = np.memmap(file, np.uint8, "r")
    for layer in list(layers.iterfind("layer[@type='Const']")):
        data = layer.find("data")
        assert data is not None
        number = str(layer.get("id"))
        begin, size = (int(data.get(name, "0")) for name in ("offset", "size"))
        value = hashlib.sha256(values[begin : begin + size].tobytes()).digest()
        key = (data.get("element_type"), data.get("shape"), value)
        kept = first.setdefault(key, number)
        if kept != number:
            replaced[number] = kept
            layers.remove(layer)
    for edge in edges:
        source = str(edge.get("from-layer"))
        edge.set("from-layer", replaced.get(source, source))
