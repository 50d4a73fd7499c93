"""An exported graph made plain: each weight and its operation are called what their module is.

So the report can say of each module what became of it, and the config can name modules to leave
out, whatever the engine renames later.
"""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
from torch import nn

from hfcompress.models.architectures import COMPRESSIBLE
from hfcompress.utils import require

_SCOPES = "pkg.torch.onnx.name_scopes"
_OPERATORS = ("MatMul", "Gather", "Conv")


def tidy(graph_model: Any, model: nn.Module) -> None:
    """Name products, tables and convolutions, and their weights, by their module.

    A module ``a.b`` has its operation called ``a.b`` and its weight ``a.b.weight``. Sums that
    are fused with a product (Gemm) are taken apart first, since the engines rename those. Notes
    on the source code, a tenth of a small file, go.

    Args:
        graph_model: an ``onnx_ir.Model`` as torch exports it; changed in place.
        model: the model that was exported, as ``model`` inside a wrapper.
    """
    graph = graph_model.graph
    for node in list(graph):
        if node.op_type == "Gemm":
            _split(graph, node)
    _name(graph, model)
    kept = set(graph.outputs)
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            if value not in kept:
                # The exporter's shapes make ONNX Runtime's own inference fail.
                value.shape = value.type = None
    for value in (*graph.initializers.values(), *graph.inputs, *graph.outputs):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    graph_model.metadata_props.clear()


def _name(graph: Any, model: nn.Module) -> None:
    modules = dict(model.named_modules())
    taken: set[str] = set()
    for node in graph:
        if node.op_type not in _OPERATORS:
            continue
        weight = next((value for value in node.inputs if _is_matrix(value)), None)
        path = _module_path(node)
        if node.op_type == "Conv" and weight is not None:
            # The exporter folds batch norms, and what it makes stands under the norm's name.
            path = weight.name.removeprefix("model.").removesuffix(".weight")
        if path in taken:
            continue
        if weight is not None and isinstance(modules.get(path), (*COMPRESSIBLE, nn.Embedding)):
            taken.add(path)
            node.name = path
            weight.name = f"{path}.weight"


def _split(graph: Any, node: Any) -> None:
    """A Gemm with a constant weight as a product and a sum (the product alone, without bias)."""
    ir = require("onnx_ir", "onnx")
    inputs, weight, bias = (*node.inputs, None)[:3]
    options = {name: attribute.value for name, attribute in node.attributes.items()}
    plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
    if not plain or options.get("transA") or not _is_matrix(weight):
        return
    if options.get("transB"):
        matrix = np.ascontiguousarray(weight.const_value.numpy().T)
        turned = ir.val(f"{weight.name}_turned", const_value=ir.tensor(matrix))
        graph.initializers.add(turned)
    else:
        turned = weight
    made = [ir.Node("", "MatMul", [inputs, turned])]
    if bias is not None:
        made.append(ir.Node("", "Add", [made[0].outputs[0], bias]))
    made[0].metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], made, node.outputs, made[-1].outputs
    )
    if not weight.uses() and weight.name in graph.initializers:
        del graph.initializers[weight.name]


def _module_path(node: Any) -> str:
    """The module that a node was made from: the last but one of its scopes."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return scopes[-2].removeprefix("model.") if len(scopes) > 1 else ""


def _is_matrix(value: Any) -> bool:
    return value is not None and value.is_initializer() and len(value.shape or ()) >= 2
