"""Neurons between any two Linears of your own, where no family is known::

    importance = compute_neuron_importance(net.up, net.down)
    prune_layer_neurons(net.up, net.down, keep=128, importance=importance)

With ``inputs``, what reaches the second Linear in real data, the choice and a refit follow from
the second moments, as in `shrink`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfcompress.errors import CalibrationError, ConfigError, TargetError
from hfcompress.models.surgery import keep_inputs, keep_outputs
from hfcompress.shrinking.obs import eliminate, refit


def compute_neuron_importance(
    first: nn.Linear, second: nn.Linear, inputs: Tensor | None = None
) -> Tensor:
    """How much each neuron between two Linears is worth.

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
    first: nn.Linear,
    second: nn.Linear,
    keep: int | float,
    *,
    importance: Tensor | None = None,
    inputs: Tensor | None = None,
    damping: float = 0.01,
) -> Tensor:
    """Remove neurons between two Linears, in place.

    Args:
        first: loses outputs.
        second: loses inputs. With ``inputs`` its weights and bias are fitted anew, by ridge
            regression, to what it put out before.
        keep: how many neurons stay, or (a float up to 1.0) which share of them.
        importance: one number for each neuron; the highest stay. By default they are chosen
            together with the refit where there are ``inputs``, else by
            `compute_neuron_importance`.
        inputs: what ``second`` read in real data, as for `compute_neuron_importance`.
        damping: of the regression, as a share of the mean variance of the inputs.

    Returns:
        the numbers of the neurons that stayed, ascending.

    Raises:
        TargetError: the Linears do not fit together.
        ConfigError: ``keep`` is not a number of neurons, or importance has another length.
        CalibrationError: inputs of another width, or NaN in them.
    """
    _check_pair(first, second)
    width = _width(keep, first.out_features)
    if importance is not None and importance.shape != (first.out_features,):
        raise ConfigError(
            f"importance has shape {list(importance.shape)} and there are {first.out_features} "
            f"neurons; give one number for each"
        )
    if inputs is None:
        scores = compute_neuron_importance(first, second) if importance is None else importance
        kept = scores.topk(width).indices.sort().values
        _cut(first, second, kept)
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
    _cut(first, second, kept)
    second.weight.copy_(new)
    if second.bias is not None:
        second.bias.add_(shift.to(second.bias))
    return kept


def _cut(first: nn.Linear, second: nn.Linear, kept: Tensor) -> None:
    keep_outputs(first, kept)
    keep_inputs(second, kept)


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
