"""The dimensions of a module's parameters that are its inputs, outputs or features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from hfcompress.utils import is_conv1d

Side = Literal["outputs", "inputs", "features", "parameter"]
Slot = tuple[str, int]
"""The name of a parameter or buffer, and one of its dimensions."""
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose outputs can be fitted anew."""
_MIXING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_READS_FIRST = ("weight_ih_l0", "weight_ih")
"""The weights of recurrent layers that read the input; the reverse direction has the same width."""


def is_norm(module: nn.Module) -> bool:
    """Whether a module has one number for each channel, and resized() knows it."""
    return isinstance(module, (_NormBase, *_MIXING))


def mixes_channels(model: nn.Module, path: str) -> bool:
    """Whether a norm's statistics are taken over several channels."""
    return isinstance(model.get_submodule(path), _MIXING)


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one input for each of its outputs."""
    if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd):
        return False
    return module.groups == module.in_channels > 1


def groups_in(module: nn.Module) -> int:
    """In how many equal parts a module divides its channels, each of which must stay as wide."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, _ConvNd) and not is_depthwise(module):
        return module.groups
    return 1


def channel_dimension(module: nn.Module) -> int:
    """The dimension of a layer's input that holds its channels."""
    return 1 if isinstance(module, _ConvNd) else -1


def slots_of(module: nn.Module, side: Side) -> Iterator[Slot]:
    """The dimensions of a module's own tensors that are on one side."""
    if side == "features":
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.dim():  # num_batches_tracked has none
                yield name, 0
    elif isinstance(module, _RECURRENT):
        yield from ((name, 1) for name in module._parameters if _reads_inputs(name))
    elif isinstance(module, _ConvTransposeNd):
        yield "weight", 0 if side == "inputs" else 1
    else:
        yield "weight", 1 if side == "inputs" else 0
    if side == "outputs" and module._parameters.get("bias") is not None:
        yield "bias", 0


def _reads_inputs(name: str) -> bool:
    return name == "weight_ih" or name.startswith("weight_ih_l0")


def side_of(module: nn.Module, name: str, dimension: int) -> Side | None:
    """The side that a dimension of a module's own tensor is on; None where another one shows it."""
    if is_norm(module):
        named = {**module._parameters, **module._buffers}
        first = next((key for key, tensor in named.items() if tensor is not None), None)
        return "features" if name == first else None
    if isinstance(module, _RECURRENT):
        return "inputs" if name in _READS_FIRST else None
    if isinstance(module, (_ConvNd, nn.Linear)) and name in ("weight", "bias"):
        side: Side
        for side in ("outputs", "inputs"):
            if ("weight", dimension) in slots_of(module, side) and name == "weight":
                return side
        return None
    return "parameter"


def side_size(module: nn.Module, side: Side) -> int:
    """The number of a module's outputs, inputs or features."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return int(module.normalized_shape[-1])
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, _NormBase):
        return module.num_features
    if isinstance(module, _RECURRENT):
        return module.input_size
    weight = module.weight
    assert isinstance(weight, Tensor)
    dimension = next(dim for name, dim in slots_of(module, side) if name == "weight")
    shares = dimension == 1 and not is_depthwise(module)
    return int(weight.shape[dimension]) * (groups_in(module) if shares else 1)


def set_norm_width(module: nn.Module, width: int) -> None:
    """Tell a norm how many features it has; without parameters nothing else says it."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = (width,)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = width
    elif isinstance(module, _NormBase):
        module.num_features = width


def removable_dimensions(module: nn.Module, name: str, tensor: Tensor) -> tuple[int, ...]:
    """The dimensions of a module's own tensor along which channels could be removed.

    Modules of torch that `resized` does not know keep their size; a module of the network's own
    code can have tensors of any use.
    """
    if not tensor.is_floating_point():
        return ()
    if isinstance(module, (_ConvNd, nn.Linear)) and name in ("weight", "bias"):
        return tuple(range(min(tensor.dim(), 2)))
    if isinstance(module, nn.Embedding) and name == "weight":
        return (1,)
    if isinstance(module, _RECURRENT):
        return (1,) if _reads_inputs(name) else ()
    if is_norm(module) or isinstance(module, nn.PReLU):
        return (0,) if tensor.dim() == 1 else ()
    if type(module).__module__.startswith("torch.") and not is_conv1d(module):
        return ()
    return tuple(range(tensor.dim()))


def own_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Each parameter and buffer of each module: its whole name, the module, its name there."""
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}" if path else name, module, name, tensor


def tensor_at(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by any of its names."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    found = module._parameters.get(last, module._buffers.get(last))
    assert found is not None
    return found


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, shared ones once, by their first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, _, _, tensor in own_tensors(model):
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())
