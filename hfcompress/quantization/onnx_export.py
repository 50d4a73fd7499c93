"""``export_onnx``: a classifier as an ONNX file whose batch and length may vary.

torch captures the model (``torch.onnx.export``, the dynamo exporter), which folds batch norms into
the convolutions before them; graph.py calls each weight what its module is called.
"""

from __future__ import annotations

import ast
import inspect
import logging
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.errors import ModelError, first_line
from hfcompress.measure.macs import evaluation_mode
from hfcompress.models.architectures import is_compressible
from hfcompress.quantization.images import IMAGE_INPUT as IMAGE_INPUT
from hfcompress.quantization.images import ImageShape, checked_shape, example_images, image_shape
from hfcompress.utils import require, unwritable

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "logits"
# Both engines' fp32 kernels stay within 2e-5 of torch's on the families tested.
TOLERANCE = 1e-4
# Bytes of weights up to which they go into the graph's file; a protobuf message holds 2 GB.
ONE_FILE = 2**31 - 2**26
_EXAMPLE = (2, 12)
_CHECKED = ((1, 5), (3, 17))
Arrays = Mapping[str, NDArray[Any]]


def input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """What a classifier reads: ids, mask and, where it knows several, token types; or pixels."""
    if model.main_input_name == IMAGE_INPUT:
        return (IMAGE_INPUT,)
    known = inspect.signature(model.forward).parameters
    types = int(getattr(model.config, "type_vocab_size", 0) or 0)
    return tuple(
        name for name in TEXT_INPUTS if name in known and (name != "token_type_ids" or types > 1)
    )


def example_inputs(
    model: PreTrainedModel, batch: int, length: int, image: ImageShape | None = None
) -> dict[str, Tensor]:
    """Random inputs of the model's kind, the same on every call; every second row is padded.

    Args:
        model: its config says sizes.
        batch: rows.
        length: tokens.
        image: shape of the images; None takes the config's, or the usual one.
    """
    generator = torch.Generator().manual_seed(0)
    config: Any = model.config
    names = input_names(model)
    if names == (IMAGE_INPUT,):
        return {IMAGE_INPUT: example_images(model, batch, image or image_shape(model), generator)}
    padding = getattr(config, "pad_token_id", None) or 0
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    ids[ids == padding] = padding + 1
    mask = torch.ones_like(ids)
    mask[1::2, length * 2 // 3 :] = 0
    types = (torch.arange(length) > length // 2).long().expand(batch, length).clone()
    inputs = {
        "input_ids": ids.where(mask.bool(), padding), "attention_mask": mask,
        "token_type_ids": types,
    }  # fmt: skip
    return {name: inputs[name] for name in names}


def export_onnx(
    model: PreTrainedModel,
    path: str | Path,
    image: ImageShape | None = None,
    one_file: bool = True,
) -> Path:
    """Write a model as ONNX, fp32, batch and length dynamic.

    The file appears whole or not at all. A model above 2 GB has its weights in ``NAME.data``
    beside it, since one protobuf message holds no more.

    Args:
        model: any state; it is left as it was.
        path: ``model.onnx``; its folder is made.
        image: shape of the images that the graph reads; None takes the config's, or any height and
            width where it says none.
        one_file: False puts the weights into ``NAME.data`` whatever their size, one after the
            other; for one file they are in memory three times while it is written.

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
    # Not .tmp at the end: the exporter names the file of a large model's weights after this one.
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if size > ONE_FILE or not one_file:
            # Its name is written into the file, so it must be the final one.
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
    model: PreTrainedModel,
    run: Callable[[Arrays], NDArray[np.float32]],
    engine: str,
    image: ImageShape | None = None,
) -> float:
    """Compare what an engine computes in fp32 with torch, on batches of several shapes.

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
            expected = model(**inputs).logits.float().numpy()
        found = run({name: tensor.numpy() for name, tensor in inputs.items()})
        difference = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
        if not difference <= TOLERANCE:
            of = "images" if IMAGE_INPUT in inputs else "tokens"
            shape = " x ".join(str(size) for size in next(iter(inputs.values())).shape)
            raise ModelError(
                f"{type(model).__name__} in {engine} puts out logits that differ from torch's by "
                f"{difference:.2g} for {shape} {of}, more than {TOLERANCE:g}; "
                f"use backend: torch"
            )
        largest = max(largest, float(difference))
    return largest


# --- capturing ---------------------------------------------------------------------------------


class _Logits(nn.Module):
    """Inputs by place, one output: what an ONNX graph is."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def _capture(model: PreTrainedModel, image: ImageShape | None) -> Any:
    names = input_names(model)
    inputs = example_inputs(model, *_EXAMPLE, checked_shape(model, image, 0))
    dynamic: Any = torch.export.Dim.DYNAMIC
    axes = {0: dynamic, 1: dynamic}
    if names == (IMAGE_INPUT,):
        axes = {0: dynamic} if image else {0: dynamic, 2: dynamic, 3: dynamic}
    with ExitStack() as stack:
        for context in (evaluation_mode(model), _plain_attention(model), _quiet(), torch.no_grad()):
            stack.enter_context(context)
        wrapped = _Logits(model, names).train(False)
        try:
            return torch.onnx.export(
                wrapped,
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(names),
                output_names=[OUTPUT],
                dynamic_shapes=(tuple(axes for _ in names),),
                verbose=False,
            )
        except Exception as error:  # whatever torch raises is about this model
            line = first_line(error.__cause__ or error)
            raise ModelError(
                f"torch cannot export {type(model).__name__} to ONNX: {line}; use backend: torch"
            ) from error


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention as two products and a softmax; the fused kernel exports as a longer graph."""
    config: Any = model.config
    before = config._attn_implementation
    try:
        if before == "sdpa":
            model.set_attn_implementation("eager")
        yield
    finally:
        if before == "sdpa":
            model.set_attn_implementation(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own notes: that torchvision is missing, and what it deprecates in itself."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch 2.13, 2026-11: raised inside the exporter by its own calls.
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
            warnings.filterwarnings("ignore", module=r"torch\.(onnx|export|fx)\b")
            yield
    finally:
        logger.setLevel(level)


def _save_apart(program: Any, path: Path, temporary: Path) -> None:
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
        module = modules.get(path)
        if weight is not None and (is_compressible(module) or isinstance(module, nn.Embedding)):
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
