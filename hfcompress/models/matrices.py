"""A module's weight as a matrix of outputs x inputs, whatever its layout."""

from __future__ import annotations

from torch import Tensor, nn

from hfcompress.errors import TargetError
from hfcompress.utils import is_conv1d


def weight_matrix(module: nn.Module) -> Tensor:
    """A weight as a matrix of outputs x inputs (of a group, times the kernel); a view if it can."""
    weight = _weight(module)
    return (weight.transpose(0, 1) if inputs_first(module) else weight).flatten(1)


def write_matrix(module: nn.Module, matrix: Tensor) -> None:
    """Write a matrix of outputs x inputs (see `weight_matrix`) into a module's weight."""
    weight = _weight(module)
    target = weight.transpose(0, 1) if inputs_first(module) else weight
    target.copy_(matrix.reshape(target.shape))


def inputs_first(module: nn.Module) -> bool:
    """Whether a module's weight has its inputs in the first dimension."""
    return is_conv1d(module) or isinstance(module, nn.modules.conv._ConvTransposeNd)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TargetError(f"{type(module).__name__} has no weight tensor to compress")
    return weight.detach()
