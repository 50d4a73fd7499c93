"""``export_onnx``: a classifier as an ONNX file whose batch and length may vary.

``torch.onnx.export`` (the dynamo exporter) captures the model and folds batch norms into the
convolutions before them; `tidy` names each weight after its module.
"""

from __future__ import annotations

import ast
import inspect
import logging
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.errors import ModelError, first_line
from hfcompress.inference import logits_in
from hfcompress.measure.macs import evaluation_mode, is_weighted
from hfcompress.models.modeling_embedding import EmbeddingModel
from hfcompress.quantization.engine import SPAN_OUTPUTS, Arrays
from hfcompress.quantization.engine import TEXT_INPUTS as TEXT_INPUTS
from hfcompress.quantization.images import IMAGE_INPUT as IMAGE_INPUT
from hfcompress.quantization.images import ImageShape, checked_shape, example_images, image_shape
from hfcompress.quantization.inputs import Classifier, PlainModel
from hfcompress.training.outputs import infer_task
from hfcompress.utils import require, unwritable

if TYPE_CHECKING:
    from onnx_ir import Graph, Model, Node, Value
    from torch.onnx import ONNXProgram

OUTPUT = "logits"
POOLING = "pooling."
"""Prefix of the names of operations that make a vector of token states; they stay in fp32."""
EMBEDDING_OUTPUTS = {"sentence_embedding": OUTPUT, "last_hidden_state": "last_hidden_state"}
"""Outputs of an embedding model's graph by the names that sentence-transformers knows, the vectors
first, and the fields of the model's output."""
# Both engines' fp32 kernels stay within 2e-5 of torch's on the families tested.
TOLERANCE = 1e-4
# Bytes of weights up to which they go into the graph's file; a protobuf message holds 2 GB.
ONE_FILE = 2**31 - 2**26
_EXAMPLE = (2, 12)
_CHECKED = ((1, 5), (3, 17))


def input_names(model: Classifier) -> tuple[str, ...]:
    """Return the inputs of a classifier: ids, mask, token types if it has several; or pixels."""
    if isinstance(model, PlainModel):
        return tuple(model.example)
    if model.main_input_name == IMAGE_INPUT:
        return (IMAGE_INPUT,)
    known = inspect.signature(model.forward).parameters
    types = int(getattr(model.config, "type_vocab_size", 0) or 0)
    return tuple(
        name for name in TEXT_INPUTS if name in known and (name != "token_type_ids" or types > 1)
    )


def example_inputs(
    model: Classifier, batch: int, length: int, image: ImageShape | None = None
) -> dict[str, Tensor]:
    """Return random inputs, the same on every call; every second row of tokens is padded.

    Args:
        model: its config names the sizes.
        batch: rows.
        length: tokens; at most the model's positions.
        image: shape of the images; None takes the config's, or 224 x 224.
    """
    if isinstance(model, PlainModel):
        return model.inputs(batch, length)
    generator = torch.Generator().manual_seed(0)
    config, names = model.config, input_names(model)
    if names == (IMAGE_INPUT,):
        return {IMAGE_INPUT: example_images(model, batch, image or image_shape(model), generator)}
    from hfcompress.data.encode import text_limit  # datasets takes long to import

    length = text_limit(length, model) or length
    padding = getattr(config, "pad_token_id", None) or 0
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    ids[ids == padding] = padding + 1
    mask = torch.ones_like(ids)
    mask[1::2, length * 2 // 3 :] = 0
    if config.is_encoder_decoder and config.eos_token_id is not None:
        # Such classifiers read the state of the last end token, of which every row needs as many.
        end = int(config.eos_token_id)
        ids[ids == end] = max(end, padding) + 1
        ids[torch.arange(batch), mask.sum(1) - 1] = end
    types = (torch.arange(length) > length // 2).long().expand(batch, length).clone()
    inputs = {
        "input_ids": ids.where(mask.bool(), padding), "attention_mask": mask,
        "token_type_ids": types,
    }  # fmt: skip
    return {name: inputs[name] for name in names}


def export_onnx(
    model: Classifier,
    path: str | Path,
    image: ImageShape | None = None,
    one_file: bool = True,
) -> Path:
    """Write a model as ONNX, fp32, batch and length dynamic.

    The file is written atomically. The weights of a model above 2 GB, the limit of a protobuf
    message, are in ``NAME.data`` beside it.

    Args:
        model: in any state; not changed.
        path: ``model.onnx``; its folder is created.
        image: shape of the graph's images; None takes the config's, or any height and width if
            the config has no size.
        one_file: False writes the weights into ``NAME.data`` whatever their size, one by one;
            writing one file needs three copies of them in memory.

    Returns:
        The path.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        ModelError: torch cannot capture the model.
        OutputError: the file cannot be written.
    """
    for name in ("onnx", "onnxscript"):
        require(name, "onnx")
    path = Path(path)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    program = _capture(model, image or image_shape(model))
    tidy(program.model, model)
    # No suffix .tmp: the exporter names the weights' file of a large model after this name.
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if size > ONE_FILE or not one_file:
            # The graph contains the name of the weights' file, so it must be the final name.
            _save_apart(program, path, temporary)
        else:
            program.save(str(temporary), external_data=False)
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        if temporary.exists():
            temporary.unlink()
    return path


def check_against_torch(
    model: Classifier,
    run: Callable[[Arrays], NDArray[np.float32]],
    engine: str,
    image: ImageShape | None = None,
) -> float:
    """Return the difference of an engine's fp32 logits from torch's on batches of several shapes.

    Args:
        model: the model that was exported.
        run: inputs by name -> logits.
        engine: its name, for the message.
        image: as the model was exported for.

    Returns:
        The largest difference of any logit, relative to the largest logit where that is above 1.

    Raises:
        ModelError: more than `TOLERANCE`, or NaN.
    """
    largest, image = 0.0, image or image_shape(model)
    for turn, (batch, length) in enumerate(_CHECKED):
        inputs = example_inputs(model, batch, length, checked_shape(model, image, turn))
        with evaluation_mode(model), torch.inference_mode():
            expected = logits_in(model(**inputs)).float().numpy()
        found = run({name: tensor.numpy() for name, tensor in inputs.items()})
        difference = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
        if not difference <= TOLERANCE:
            of = "images" if IMAGE_INPUT in inputs else "tokens"
            shape = " x ".join(str(size) for size in next(iter(inputs.values())).shape)
            raise ModelError(
                f"{type(model).__name__} in {engine} gives logits that differ from torch's by "
                f"{difference:.2g} for {shape} {of}, more than {TOLERANCE:g}; "
                f"use backend: torch"
            )
        largest = max(largest, float(difference))
    return largest


# --- capturing ---------------------------------------------------------------------------------


class _Outputs(nn.Module):
    """Positional inputs and outputs, as an ONNX graph has them."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.outputs = outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(getattr(found, name) for name in self.outputs)


def _output_fields(model: Classifier) -> dict[str, str]:
    """Return the graph's outputs, the one that an engine gives first, by field."""
    if infer_task(model) == "spans":
        return dict(zip(SPAN_OUTPUTS, SPAN_OUTPUTS, strict=True))
    return EMBEDDING_OUTPUTS if isinstance(model, EmbeddingModel) else {OUTPUT: OUTPUT}


def _capture(model: Classifier, image: ImageShape | None) -> ONNXProgram:
    names = input_names(model)
    inputs = example_inputs(model, *_EXAMPLE, checked_shape(model, image, 0))
    dynamic = torch.export.Dim.DYNAMIC
    sides = {} if image or isinstance(model, PlainModel) else {2: dynamic, 3: dynamic}
    axes = {
        name: {0: dynamic, 1: dynamic} if name in TEXT_INPUTS else {0: dynamic, **sides}
        for name in names
    }
    with ExitStack() as stack:
        for context in (evaluation_mode(model), eager_attention(model), _quiet(), torch.no_grad()):
            stack.enter_context(context)
        outputs = _output_fields(model)
        wrapped = _Outputs(model, names, tuple(outputs.values())).train(False)
        try:
            program = torch.onnx.export(
                wrapped,
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(names),
                output_names=list(outputs),
                dynamic_shapes=(tuple(axes[name] for name in names),),
                verbose=False,
            )
        except Exception as error:  # the exporter's errors share no base class
            line = first_line(error.__cause__ or error)
            raise ModelError(
                f"torch cannot export {type(model).__name__} to ONNX: {line}; use backend: torch"
            ) from error
    assert program is not None  # with dynamo=True
    return program


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Use eager attention; the fused kernel exports as a longer graph."""
    fused = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and module.config._attn_implementation == "sdpa"
    ]
    try:
        for module in fused:
            module.set_attn_implementation("eager")
        yield
    finally:
        for module in fused:
            module.set_attn_implementation("sdpa")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's notes on a missing torchvision and its own deprecation warnings."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch 2.13, 2026-11: caused inside the exporter by its own calls.
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*_check_is_size.*")
            warnings.filterwarnings("ignore", message=".*_flat_weights.* assigned during export")
            warnings.filterwarnings("ignore", module=r"torch\.(onnx|export|fx)\b")
            yield
    finally:
        logger.setLevel(level)


def _save_apart(program: ONNXProgram, path: Path, temporary: Path) -> None:
    folder = path.parent / temporary.stem
    try:
        folder.mkdir()
        program.save(str(folder / path.name), external_data=True)
        os.replace(folder / f"{path.name}.data", path.with_name(f"{path.name}.data"))
        os.replace(folder / path.name, temporary)
    finally:
        for file in folder.glob("*"):
            file.unlink()
        folder.rmdir()


_SCOPES = "pkg.torch.onnx.name_scopes"
_OPERATORS = ("MatMul", "Gather", "Conv")


def tidy(graph_model: Model, model: nn.Module) -> None:
    """Name products, tables and convolutions, and their weights, after their modules.

    The operation of a module ``a.b`` becomes ``a.b`` and its weight ``a.b.weight``. Each Gemm is
    split into a product and a sum first, because the engines rename Gemms. Source locations, a
    tenth of a small file, are removed.

    Args:
        graph_model: as torch exports it; changed in place.
        model: the exported model, called ``model`` inside a wrapper.
    """
    graph = graph_model.graph
    for node in list(graph):
        if node.op_type == "Gemm":
            _split(graph, node)
    _name(graph, model)
    if isinstance(model, EmbeddingModel):
        for place, node in enumerate(graph):
            if not node.name or _module_path(node) in ("", "model"):
                node.name = f"{POOLING}{place}"
    kept = set(graph.outputs)
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            if value not in kept:
                # ONNX Runtime's shape inference fails on some of the exporter's shapes.
                value.shape = value.type = None
    for value in (*graph.initializers.values(), *graph.inputs, *graph.outputs):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    graph_model.metadata_props.clear()


def _name(graph: Graph, model: nn.Module) -> None:
    modules = dict(model.named_modules())
    taken: set[str] = set()
    read: set[Value] = set()
    for node in list(graph):
        if node.op_type not in _OPERATORS:
            continue
        weight = next((value for value in node.inputs if _is_matrix(value)), None)
        path = _module_path(node)
        if node.op_type == "Conv" and weight is not None:
            # A convolution with a folded batch norm has the scope of the norm.
            path = str(weight.name).removeprefix("model.").removesuffix(".weight")
        if path in taken:
            continue
        module = modules.get(path)
        if weight is not None and (is_weighted(module) or isinstance(module, nn.Embedding)):
            if weight in read:
                weight = _copied(graph, node, weight, f"{path}.weight")
            read.add(weight)
            taken.add(path)
            node.name = path
            weight.name = f"{path}.weight"


def _copied(graph: Graph, node: Node, weight: Value, name: str) -> Value:
    """Give a node a constant of its own: torch stores equal weights of two modules once, and the
    engines tell modules apart by the names of their weights."""
    own: Value = require("onnx_ir", "onnx").val(name, const_value=weight.const_value)
    graph.initializers.add(own)
    node.replace_input_with(list(node.inputs).index(weight), own)
    return own


def _split(graph: Graph, node: Node) -> None:
    """Replace a Gemm with a constant weight by a product and, if it has a bias, a sum."""
    ir = require("onnx_ir", "onnx")
    inputs, weight, bias = (*node.inputs, None)[:3]
    options = {name: attribute.value for name, attribute in node.attributes.items()}
    plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
    if not plain or options.get("transA") or not _is_matrix(weight):
        return
    if options.get("transB"):
        assert weight.const_value is not None
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
        del graph.initializers[str(weight.name)]


def _module_path(node: Node) -> str:
    """Return the module of a node: the last but one of its scopes."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return scopes[-2].removeprefix("model.") if len(scopes) > 1 else ""


def _is_matrix(value: Value | None) -> TypeGuard[Value]:
    return value is not None and value.is_initializer() and len(value.shape or ()) >= 2
