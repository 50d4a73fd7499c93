"""Compare a model's shapes with those its config builds; resize a fresh model to recorded ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from hfcompress.checkpoint.record import Record, Shape
from hfcompress.errors import ModelError
from hfcompress.layers.int8_linear import Int8Linear
from hfcompress.models.architectures import WIDTH_PARAMETERS, base_prefix
from hfcompress.models.modeling_embedding import EmbeddingModel
from hfcompress.models.surgery import resized

RESIZABLE = (
    nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU, nn.RNNBase,
    nn.RNNCellBase, Conv1D, _ConvNd, _NormBase,
)  # fmt: skip
"""The classes whose modules may differ in shape from the config."""


def built_from_config(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and config on the meta device: shapes and no data."""
    with torch.device("meta"), no_init_weights():
        fresh: PreTrainedModel = type(model)(copy.deepcopy(model.config))
        if isinstance(fresh, EmbeddingModel):
            fresh.set_layout(cast(EmbeddingModel, model).layout)
    return fresh


def difference(model: PreTrainedModel, fresh: PreTrainedModel) -> Record:
    """Return the shapes of a model that its config does not build.

    Args:
        model: any state of it; no tensor is read.
        fresh: `built_from_config` of it.

    Raises:
        ModelError: a difference that is more than sizes: other modules, or other classes.
    """
    modules, others = dict(model.named_modules()), dict(fresh.named_modules())
    for name in sorted(set(modules) ^ set(others)):
        raise ModelError(
            f"{type(model).__name__} cannot be saved so that it loads again: {name!r} is "
            f"{'a module' if name in modules else 'missing, a module'} that its config does not "
            f"{'build' if name in modules else 'leave out'}"
        )
    shapes: dict[str, dict[str, Shape | None]] = {}
    for name, module in modules.items():
        if changed := _changed_shapes(name, module, others[name]):
            shapes[name] = changed
    int8 = tuple(name for name, module in modules.items() if isinstance(module, Int8Linear))
    return Record(type(model).__name__, base_prefix(model), shapes, int8=int8)


def resize(module: nn.Module, name: str, shapes: dict[str, Shape | None]) -> None:
    """Give a module on the meta device parameters and buffers of other shapes.

    Args:
        module: of a class in `RESIZABLE`; changed in place.
        name: where it is, for messages.
        shapes: parameter or buffer -> its new shape; None removes it.

    Raises:
        ModelError: another class, or a tensor that it does not have.
    """
    if not is_resizable(module, shapes):
        raise ModelError(
            f"config.json: the recorded module {name!r} is a {type(module).__name__} in this "
            f"model, not a Linear, Embedding, LayerNorm or convolution; "
            f"the record belongs to another model"
        )
    for key, shape in shapes.items():
        if key not in module._parameters and key not in module._buffers:
            raise ModelError(
                f"config.json: the recorded module {name!r} ({type(module).__name__}) "
                f"has no tensor {key!r}; the record belongs to another model"
            )
        old = getattr(module, key)
        if shape is not None and key != "bias" and len(shape) != old.dim():
            raise ModelError(
                f"config.json: {name}.{key} is recorded with the shape {list(shape)}, and a "
                f"{type(module).__name__} needs {old.dim()} sizes"
            )
        _replace(module, key, old, shape)
    resized(module)


def _replace(module: nn.Module, key: str, old: Tensor | None, shape: Shape | None) -> None:
    if shape is None:
        setattr(module, key, None)
        return
    like = old if old is not None else cast(Tensor, module.weight)
    new = torch.empty(shape, dtype=like.dtype, device=like.device)
    setattr(module, key, new if key in module._buffers else nn.Parameter(new))


def _changed_shapes(name: str, module: nn.Module, fresh: nn.Module) -> dict[str, Shape | None]:
    found: dict[str, Shape | None] = {}
    if isinstance(module, Int8Linear):
        module = _dense_module(module, fresh)
    for key in dict.fromkeys((*module._parameters, *module._buffers, *fresh._parameters)):
        ours, theirs = getattr(module, key, None), getattr(fresh, key, None)
        shape = None if ours is None else tuple(ours.shape)
        if shape != (None if theirs is None else tuple(theirs.shape)):
            found[key] = shape
    # A class of the user's own derived from Linear is a Linear to whoever loads the checkpoint.
    if found and not (is_resizable(module, found) and is_resizable(fresh, found)):
        raise ModelError(
            f"{name!r} cannot be saved so that it loads again: it is a {type(module).__name__} "
            f"whose shapes its config cannot express"
        )
    return found


def is_resizable(module: nn.Module, shapes: Mapping[str, Shape | None]) -> bool:
    """Whether these tensors of a module may have other shapes."""
    return isinstance(module, RESIZABLE) or (type(module).__name__, *shapes) in WIDTH_PARAMETERS


def _dense_module(module: Int8Linear, fresh: nn.Module) -> nn.Module:
    """The Linear or Conv1D (meta device) that an `Int8Linear` replaced."""
    outputs, inputs = module.out_features, module.in_features
    with torch.device("meta"):
        if isinstance(fresh, Conv1D):
            return Conv1D(outputs, inputs)  # type: ignore[no-untyped-call]
        return nn.Linear(inputs, outputs, module.bias is not None)
