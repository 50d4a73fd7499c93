"""Neurons between any two Linears of your own, where no family is known::

    importance = compute_neuron_importance(net.up, net.down)
    prune_layer_neurons(net.up, net.down, keep=128, importance=importance)

With ``inputs``, what reaches the second Linear in real data, the choice and a refit follow from
the second moments, as in `shrink`. A batch norm between the two has one number for each neuron
and is given with them::

    prune_layer_neurons(net.up, net.down, keep=128, between=net.norm)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hfcompress.errors import CalibrationError, ConfigError, TargetError
from hfcompress.models.surgery import keep_along, keep_inputs, keep_outputs, resized
from hfcompress.shrinking.obs import eliminate, refit

_MIXING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.GLU)
"""Modules between two Linears in which each neuron counts for the others."""


def compute_neuron_importance(
    first: nn.Linear, second: nn.Linear, inputs: Tensor | None = None
) -> Tensor:
    """Score each neuron between two Linears.

    Args:
        first: its outputs are the neurons.
        second: reads them, after any element-wise function.
        inputs: what ``second`` read, rows x neurons (more leading dimensions are rows, too). With
            it a neuron counts by how much of the output's variance it makes: the root mean
            square of its activation about the mean times the norm of its column; without it by
            the norm of all of its weights.

    Returns:
        one number for each neuron; higher is worth more.

    Raises:
        TargetError: the Linears do not fit together.
        CalibrationError: inputs of another width, or NaN in them.
    """
    _check_pair(first, second)
    columns = second.weight.detach().float().square().sum(0)
    if inputs is None:
        return (first.weight.detach().float().square().sum(1) + columns).sqrt()
    rows = _rows(second, inputs)
    return (rows.var(0, unbiased=False) * columns).sqrt()


@torch.no_grad()
def prune_layer_neurons(
    first: nn.Linear | nn.Sequential,
    second: nn.Linear,
    keep: int | float,
    *,
    importance: Tensor | None = None,
    inputs: Tensor | None = None,
    damping: float = 0.01,
    between: nn.Module | Iterable[nn.Module] = (),
) -> Tensor:
    """Remove neurons between two Linears, in place.

    Args:
        first: loses outputs. Of an ``nn.Sequential`` it is the last Linear, and what follows that
            is ``between``.
        second: loses inputs. With ``inputs`` its weights and bias are fitted anew, by ridge
            regression, to what it put out before.
        keep: how many neurons stay, or (a float up to 1.0) which share of them.
        importance: one number for each neuron; the highest stay. By default they are chosen
            together with the refit where there are ``inputs``, else by
            `compute_neuron_importance`.
        inputs: what ``second`` read in real data, as for `compute_neuron_importance`.
        damping: of the regression, as a share of the mean variance of the inputs.
        between: modules between the two; batch norms and PReLUs among them lose the same neurons.

    Returns:
        the numbers of the neurons that stayed, ascending.

    Raises:
        TargetError: the Linears do not fit together, or a module between them mixes neurons.
        ConfigError: ``keep`` is not a number of neurons, or importance has another length.
        CalibrationError: inputs of another width, or NaN in them.
    """
    first, modules = _apart(first, between)
    _check_pair(first, second)
    for module in modules:
        _check_between(module, first.out_features)
    width = _width(keep, first.out_features)
    if importance is not None and importance.shape != (first.out_features,):
        raise ConfigError(
            f"importance has shape {list(importance.shape)} and there are {first.out_features} "
            f"neurons; give one number for each"
        )
    if inputs is None:
        scores = compute_neuron_importance(first, second) if importance is None else importance
        kept = scores.topk(width).indices.sort().values
        _cut(first, second, kept, modules)
        return kept
    rows = _rows(second, inputs).double()
    mean, weight = rows.mean(0), second.weight.detach().double()
    if second.bias is not None:
        rows = rows - mean
    gram = rows.T @ rows / len(rows)
    cross = weight @ gram
    if importance is None:
        kept = eliminate(weight, gram, cross, [width], size=1, damping=damping)[width]
    else:
        kept = importance.topk(width).indices.sort().values
    new = refit(weight, gram, cross, kept, damping)
    shift = weight @ mean - new @ mean[kept]
    _cut(first, second, kept, modules)
    second.weight.copy_(new)
    if second.bias is not None:
        second.bias.add_(shift.to(second.bias))
    return kept


def _cut(first: nn.Linear, second: nn.Linear, kept: Tensor, modules: Sequence[nn.Module]) -> None:
    keep_outputs(first, kept)
    keep_inputs(second, kept)
    for module in modules:
        own = (*module._parameters.values(), *module._buffers.values())
        for tensor in own:
            if tensor is not None and len(tensor.shape) == 1 and len(tensor) > 1:
                keep_along(tensor, kept, 0)
        resized(module)


def _apart(
    first: nn.Linear | nn.Sequential, between: nn.Module | Iterable[nn.Module]
) -> tuple[nn.Linear, list[nn.Module]]:
    """The Linear that loses outputs, and all modules behind it that are not containers."""
    given = [between] if isinstance(between, nn.Module) else list(between)
    if isinstance(first, nn.Sequential):
        parts = list(first)
        last = max((i for i, part in enumerate(parts) if isinstance(part, nn.Linear)), default=-1)
        if last < 0:
            raise TargetError("the Sequential in front holds no Linear; give the Linear itself")
        linear = parts[last]
        assert isinstance(linear, nn.Linear)
        first, given = linear, [*parts[last + 1 :], *given]
    found = [part for module in given for part in module.modules() if not list(part.children())]
    return first, list(dict.fromkeys(found))


def _check_between(module: nn.Module, neurons: int) -> None:
    """Refuse a module that does more than work on each neuron alone.

    Raises:
        TargetError: it has parameters that are not one number for each neuron, or mixes neurons.
    """
    alone = isinstance(module, (_NormBase, nn.PReLU))
    own = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    sizes = {len(tensor) for tensor in own if tensor.dim()}
    if (alone and sizes <= {neurons, 1}) or not (own or isinstance(module, _MIXING)):
        return
    raise TargetError(
        f"{type(module).__name__} between the Linears cannot lose neurons one by one; "
        f"give only batch norms of {neurons} features, PReLUs and functions of single neurons"
    )


def _width(keep: int | float, neurons: int) -> int:
    width = round(keep * neurons) if isinstance(keep, float) else keep
    if not 0 <= width <= neurons:
        raise ConfigError(
            f"keep {keep} of {neurons} neurons is not possible; give a number from 0 to {neurons} "
            f"or a share such as 0.5"
        )
    return width


def _check_pair(first: nn.Linear, second: nn.Linear) -> None:
    if first.out_features != second.in_features:
        raise TargetError(
            f"the first Linear has {first.out_features} outputs and the second "
            f"{second.in_features} inputs; give two that follow each other"
        )


def _rows(second: nn.Linear, inputs: Tensor) -> Tensor:
    if inputs.shape[-1] != second.in_features:
        raise CalibrationError(
            f"inputs have width {inputs.shape[-1]} and the second Linear reads "
            f"{second.in_features}; give what the second Linear reads"
        )
    rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
    if not len(rows) or not bool(torch.isfinite(rows).all()):
        raise CalibrationError("inputs are empty, NaN or infinite; give real activations")
    return rows
