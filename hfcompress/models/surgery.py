"""Smaller matrices: keep some rows or columns of a module, some units of a sublayer, some layers.

Parameters keep their identity and get smaller data: an optimizer that holds them trains them on,
and a weight that two modules share stays shared (cut it once; then tell each module its new
size with `resized`). What an optimizer remembers of a parameter (moments) has the old shape and
must be forgotten: make a new optimizer, or clear its ``state``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from hfcompress.errors import ModelError, TargetError
from hfcompress.models.architectures import blocks
from hfcompress.models.sublayers import Sublayer, known_family
from hfcompress.utils import is_conv1d

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

Index = Tensor | Sequence[int]
_MIXING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_DENSE = "_hfcompress_dense_shapes"


def keep_outputs(module: nn.Module, keep: Index) -> None:
    """Keep some outputs of an ``nn.Linear`` or ``Conv1D``, in the given order, bias included.

    Args:
        module: changed in place.
        keep: numbers of the outputs.

    Raises:
        TargetError: another kind of module.
    """
    linear = _linear(module)
    keep_along(linear.weight, keep, 1 if is_conv1d(module) else 0)
    if linear.bias is not None:
        keep_along(linear.bias, keep, 0)
    resized(module)


def keep_inputs(module: nn.Module, keep: Index) -> None:
    """Keep some inputs of an ``nn.Linear`` or ``Conv1D``; as `keep_outputs`."""
    keep_along(_linear(module).weight, keep, 0 if is_conv1d(module) else 1)
    resized(module)


def keep_features(module: nn.Module, keep: Index) -> None:
    """Keep some features of an ``nn.LayerNorm`` (its last dimension) or an ``nn.Embedding``.

    Raises:
        TargetError: another kind of module.
    """
    if isinstance(module, nn.Embedding):
        keep_along(module.weight, keep, 1)
    elif isinstance(module, nn.LayerNorm):
        for parameter in (module.weight, module.bias):
            if parameter is not None:
                keep_along(parameter, keep, parameter.dim() - 1)
        module.normalized_shape = (*module.normalized_shape[:-1], len(keep))
    else:
        raise TargetError(f"{type(module).__name__} has no features to select")
    resized(module)


def keep_rows(module: nn.Embedding, keep: Index) -> None:
    """Keep some rows of an embedding table; the padding row's number moves with it."""
    keep_along(module.weight, keep, 0)
    if module.padding_idx is not None:
        places = [int(row) for row in keep]
        module.padding_idx = (
            places.index(module.padding_idx) if module.padding_idx in places else None
        )
    resized(module)


def resized(module: nn.Module) -> None:
    """Set a module's size attributes to the shape of its weight.

    A depthwise convolution keeps one group for each channel; other groups stay as many.
    """
    weight: Any = getattr(module, "weight", None)
    if is_conv1d(module):
        module.nx, module.nf = module.weight.shape
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        if weight is not None:
            module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, _NormBase):
        known = next((t for t in (weight, module.running_mean) if t is not None), None)
        module.num_features = module.num_features if known is None else len(known)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = module.num_channels if weight is None else len(weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)
    elif isinstance(module, nn.RNNCellBase):
        module.input_size = module.get_parameter("weight_ih").shape[1]
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
    elif isinstance(module, _ConvTransposeNd):
        module.in_channels, module.out_channels = len(weight), weight.shape[1] * module.groups
    elif isinstance(module, _ConvNd):
        if module.groups == module.in_channels > 1:
            module.groups = len(weight) // (module.out_channels // module.groups)
        module.out_channels = len(weight)
        module.in_channels = weight.shape[1] * module.groups


@torch.no_grad()
def load_shapes(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network of the full size the shapes and the values of a saved smaller one.

    For plain modules; transformers models reload by ``from_pretrained``.

    Args:
        model: built as the dense one was; changed in place.
        tensors: the state of the smaller network, such as safetensors' ``load_file`` reads.

    Raises:
        ModelError: tensors of another network, or a norm whose width none of them says.
    """
    own = model.state_dict(keep_vars=True)
    missing = [name for name in own if name not in tensors and not _is_shared(own, name, tensors)]
    unknown = [name for name in tensors if name not in own]
    if missing or unknown:
        raise ModelError(
            f"the tensors do not belong to {type(model).__name__}: {(missing + unknown)[0]!r} is "
            f"in one of both alone; build the network as the saved one was built"
        )
    changed = {id(own[name]) for name, tensor in tensors.items() if own[name].shape != tensor.shape}
    if changed and (problem := fixed_width(model)) is not None:
        raise ModelError(problem)
    for name, tensor in tensors.items():
        own[name].data = tensor.to(own[name]).clone()
    for module in model.modules():
        held = (*module._parameters.values(), *module._buffers.values())
        if any(id(tensor) in changed for tensor in held if tensor is not None):
            resized(module)


def fixed_width(model: nn.Module) -> str | None:
    """Return a sentence on a norm whose width no tensor says, so that a shrunk network cannot be
    given back; None where there is none."""
    for name, module in model.named_modules():
        if isinstance(module, _MIXING) and getattr(module, "weight", None) is None:
            return (
                f"{name} is a {type(module).__name__} without parameters, so that no tensor says "
                f"its width; give the norm parameters before shrinking"
            )
    return None


def note_dense_shapes(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Keep the shapes that a plain module's tensors had before anything was shrunk."""
    vars(model)[_DENSE] = dict(shapes)


def dense_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a module's tensors before anything was shrunk."""
    kept: dict[str, tuple[int, ...]] = vars(model).get(_DENSE) or _shapes(model)
    return kept


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    state = model.state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}


def _is_shared(own: Mapping[str, Tensor], name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor that is not in a file is there by another name."""
    return any(own[other] is own[name] for other in tensors if other in own)


def keep_units(model: nn.Module, sublayer: Sublayer, keep: Index) -> None:
    """Keep some heads or neurons of a sublayer; none at all leaves the output bias.

    Args:
        model: changed in place.
        sublayer: from `sublayers`.
        keep: numbers of the units, in the order wanted.

    Raises:
        TargetError: the family fixes its number of heads.
    """
    units = sublayer.units(model)
    kept = torch.as_tensor(keep, dtype=torch.long)
    if torch.equal(kept, torch.arange(units)):
        return
    if not sublayer.removable:
        raise TargetError(
            f"{sublayer.layer}: this family fixes the number of heads in its code; "
            f"shrink neurons only (heads: false)"
        )
    for name in sublayer.producers:
        keep_outputs(model.get_submodule(name), sublayer.rows(kept, units))
    keep_inputs(sublayer.out(model), sublayer.columns(kept))
    for name in sublayer.tables:
        table = model.get_parameter(name)
        keep_along(table, kept, table.dim() - 1)


def keep_layers(model: nn.Module, keep: Sequence[int]) -> None:
    """Keep some layers, in the given order, and write their number into the config.

    Args:
        model: changed in place.
        keep: numbers of the layers.

    Raises:
        TargetError: an unknown family, one with stages, no layer, a number out of range, or a
            first layer of another kind that would be dropped (ModernBERT).
    """
    if known_family(model).staged:
        raise TargetError(
            f"{type(model).__name__} has stages, whose layers cannot be dropped; "
            f"give a budget such as macs: 0.5 instead"
        )
    found = blocks(model)
    layers = list(found.values())
    if not keep or not all(0 <= number < len(layers) for number in keep):
        raise TargetError(
            f"layers {list(keep)} cannot be kept of {len(layers)}, which count from 0; "
            f"keep at least one"
        )
    config = cast("PreTrainedModel", model).config
    if config.model_type == "modernbert" and keep[0] != 0:
        raise TargetError("the first layer of ModernBERT has no norm and must stay the first")
    path = next(iter(found)).rpartition(".")[0]
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.ModuleList(layers[number] for number in keep))
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[number] for number in keep]
    config.num_hidden_layers = len(keep)
    for place, number in enumerate(keep):
        for module in layers[number].modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, "layer_idx", place)  # noqa: B010  # no class declares it


def _linear(module: nn.Module) -> nn.Linear | Conv1D:
    if isinstance(module, nn.Linear) or is_conv1d(module):
        return module
    raise TargetError(f"cannot cut a {type(module).__name__}; give a Linear or Conv1D")


@torch.no_grad()
def keep_along(parameter: Tensor, keep: Index, dimension: int) -> None:
    """Keep some places of one dimension of a parameter or buffer, which stays the same object.

    Args:
        parameter: changed in place; its gradient is forgotten.
        keep: the places, in the order wanted.
        dimension: which.
    """
    index = torch.as_tensor(keep, dtype=torch.long, device=parameter.device)
    parameter.data = parameter.data.index_select(dimension, index).contiguous()
    parameter.grad = None
