"""Which weights of a model the measurements look at, each once however often it is tied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hfcompress.config import nearest
from hfcompress.errors import TargetError

LINEAR_TYPES: tuple[type[nn.Module], ...] = (nn.Linear, Conv1D)
WEIGHT_TYPES: tuple[type[nn.Module], ...] = (*LINEAR_TYPES, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def weighted_layers(
    model: nn.Module, targets: Iterable[str] | None = None
) -> dict[str, nn.Parameter]:
    """The weights that compression looks at, by the name of their module, tied ones once.

    Args:
        model: any module.
        targets: names of modules, as ``model.named_modules()`` gives them; by default every
            ``nn.Linear``, convolution and ``Conv1D``.

    Returns:
        Module name -> weight, in the model's order.

    Raises:
        TargetError: a target that the model does not have, or that has no weight.
    """
    modules = dict(model.named_modules())
    if targets is None:
        names = [name for name, module in modules.items() if isinstance(module, WEIGHT_TYPES)]
    else:
        wanted = [targets] if isinstance(targets, str) else list(targets)
        for name in wanted:
            _check_target(model, name, modules)
        names = [name for name in modules if name in set(wanted)]
    layers: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name in names:
        weight = modules[name].weight
        if isinstance(weight, nn.Parameter) and id(weight) not in seen:
            seen.add(id(weight))
            layers[name] = weight
    return layers


def _check_target(model: nn.Module, name: str, modules: dict[str, nn.Module]) -> None:
    weighted = [key for key, module in modules.items() if _has_weight(module)]
    if name not in modules:
        raise TargetError(f"{type(model).__name__} has no module {name!r}{nearest(name, weighted)}")
    if not _has_weight(modules[name]):
        raise TargetError(
            f"the module {name!r} of {type(model).__name__} has no weight; "
            "name the layers inside it, such as its Linears"
        )


def _has_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), nn.Parameter)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode and give every module its own mode back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients, and no parameter that asks for one.

    torch's counter of operations watches the gradient of every input that asks for one, even
    under ``no_grad``; DeBERTa hands parameters to its modules as inputs.
    """
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
