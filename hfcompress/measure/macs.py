"""Multiply-accumulates of one forward pass: linear layers, convolutions and attention products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.backends import mha, mkldnn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import TypeIs

from hfcompress.config import nearest
from hfcompress.errors import ModelError, TargetError, first_line
from hfcompress.utils import is_conv1d

if TYPE_CHECKING:
    from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates (MACs) of one forward pass.

    ``modules`` holds every module that does any, by name; a module's figure includes its
    children's, and the model itself is not among them.
    """

    total: int
    modules: dict[str, int]


def count_macs(model: nn.Module, inputs: Mapping[str, Any]) -> Macs:
    """Count the multiply-accumulates of ``model(**inputs)``, for the whole batch.

    Counted are matrix products (Linear, Conv1D, LSTM, both products of attention) and convolutions,
    grouped ones by their real size; element-wise work, norms, softmax and embedding look-ups are
    not. Zeros count as much as other weights: a dense kernel multiplies them. Padding counts too.

    Args:
        model: any module; it is run once in eval mode and left as it was.
        inputs: keyword arguments of its forward, such as ``input_ids`` of batch x tokens.

    Raises:
        ModelError: the model cannot be run on these inputs.
    """
    counter = FlopCounterMode(display=False)
    try:
        with evaluation_mode(model), frozen(model), countable(), counter:
            model(**inputs)
    except Exception as error:  # whatever a forward raises is about these inputs
        line = first_line(error)
        raise ModelError(
            f"{type(model).__name__} cannot be run on the inputs {sorted(inputs)} to count MACs: "
            f"{line}"
        ) from error
    prefix = f"{type(model).__name__}."
    flops: dict[str, int] = {
        str(name): sum(by_operator.values())
        for name, by_operator in counter.get_flop_counts().items()
    }
    modules = {
        name.removeprefix(prefix): count // 2  # a multiply and an add are two operations
        for name, count in flops.items()
        if name.startswith(prefix) and count
    }
    return Macs(counter.get_total_flops() // 2, modules)


@contextmanager
def countable(onednn: bool = False) -> Iterator[None]:
    """Run every layer as plain products inside.

    The fused kernels of attention differ by device and some are not counted, nor are the fused
    layers of ``nn.TransformerEncoder`` and oneDNN's LSTM; their products are.

    Args:
        onednn: keep oneDNN on: convolutions are faster by it, and a model has no LSTM.
    """
    fused = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), nullcontext() if onednn else _without_onednn():
            yield
    finally:
        mha.set_fastpath_enabled(fused)


@contextmanager
def _without_onednn() -> Iterator[None]:
    # mkldnn.flags does this too, and touches a switch of Intel's GPUs, which warns without one.
    enabled, *_ = mkldnn.set_flags(_enabled=False, _fp32_precision=None)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        mkldnn.set_flags(_enabled=enabled, _fp32_precision=None)  # type: ignore[no-untyped-call]


def is_linear(module: nn.Module) -> TypeIs[nn.Linear | Conv1D]:
    """Whether a module is an ``nn.Linear`` or a ``Conv1D``: one matrix product."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


# Where the forward passes of these layers are written: ours equals torch's.
_PLAIN_FORWARDS = {
    "torch.nn.modules.linear", "torch.nn.modules.conv", "torch.nn.modules.sparse",
    "transformers.pytorch_utils", "hfcompress.layers.sparse_linear",
}  # fmt: skip


def has_own_forward(module: nn.Module) -> bool:
    """Whether a Linear, convolution or table computes more than its class does.

    A router that also chooses experts, a table that scales its vectors: another layer in the place
    of such a module would leave that out.
    """
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return owner.__module__ not in _PLAIN_FORWARDS


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_weighted(module: object) -> bool:
    """Whether a module multiplies its input by one weight: a Linear, Conv1D or convolution."""
    return isinstance(module, (nn.Linear, *CONVOLUTIONS)) or is_conv1d(module)


def weighted_layers(
    model: nn.Module, targets: Iterable[str] | None = None
) -> dict[str, nn.Parameter]:
    """The weights that compression looks at, by the name of their module, tied ones once.

    Args:
        model: any module.
        targets: names of modules, as ``model.named_modules()`` gives them, or of parameters; by
            default every ``nn.Linear``, convolution and ``Conv1D``.

    Returns:
        Name -> weight, in the model's order.

    Raises:
        TargetError: a target that the model does not have, or that has no weight.
    """
    modules = dict(model.named_modules())
    if targets is None:
        names = {name for name, module in modules.items() if is_weighted(module)}
    else:
        names = {targets} if isinstance(targets, str) else set(targets)
        for name in sorted(names - dict(model.named_parameters()).keys()):
            _check_target(model, name, modules)
    layers: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in modules.items():
        own = {f"{name}.{key}" if name else key: p for key, p in module._parameters.items()}
        for path, weight in ((name, getattr(module, "weight", None)), *own.items()):
            if path in names and isinstance(weight, nn.Parameter) and id(weight) not in seen:
                seen.add(id(weight))
                layers[path] = weight
    return layers


def weighted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every Linear, ``Conv1D`` and convolution, by name, in model order; tied ones once."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        if is_weighted(module):
            found.setdefault(id(module.weight), (name, module))
    return dict(found.values())


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
