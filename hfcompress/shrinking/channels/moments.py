"""Moments of what layers read, from a sample of pixels, and which columns belong to a channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration, finite_moments
from hfcompress.calibration.hooks import Stop, evaluating, first_tensor, until_stop
from hfcompress.calibration.moments import Moments, MomentSum, input_rows, output_rows, weight_of
from hfcompress.shrinking.channels.groups import ChannelGroup, Place
from hfcompress.shrinking.channels.sides import groups_in

_SAMPLE = 1 << 16
"""Pixels (or tokens) of each layer that moments are taken from, at most about."""
_NOISE = 1e-6


def input_moments(
    model: nn.Module, layers: Mapping[str, nn.Module], calibration: Calibration
) -> dict[str, Moments]:
    """Moments of each layer's inputs, from one pass.

    Raises:
        CalibrationError: a layer that saw nothing, or NaN in its inputs.
    """
    sums = {name: MomentSum() for name in layers}
    batches = len(calibration.batches)
    seen = dict.fromkeys(layers, 0)

    def add(name: str, inputs: Tensor, tokens: Tensor | None) -> None:
        rows = input_rows(layers[name], inputs, tokens)
        sums[name].add(_sampled(rows, batches, seen[name]))
        seen[name] += 1

    calibration.look(model, layers, add)
    return {name: finite_moments(name, total) for name, total in sums.items()}


def following_moments(
    name: str, dense: nn.Module, model: nn.Module, outputs: Tensor, calibration: Calibration
) -> Moments | None:
    """Moments of a layer's inputs in a shrunk model with what it puts out in the dense one.

    Args:
        name: path of the layer in both.
        dense, model: the two.
        outputs: numbers of the dense layer's outputs that the shrunk one still has.
        calibration: rows.

    Returns:
        the moments; None where channels are what the layer is applied to, and fewer are left.

    Raises:
        CalibrationError: the layer saw nothing, or NaN in its inputs.
    """
    total = MomentSum()
    layer, old = model.get_submodule(name), dense.get_submodule(name)
    with evaluating(dense), evaluating(model):
        for index in range(len(calibration.batches)):
            wanted = _called(dense, old, calibration, index)[1].index_select(
                -1 if isinstance(old, nn.Linear) else 1, outputs
            )
            inputs = input_rows(layer, _called(model, layer, calibration, index)[0], None)
            goal = output_rows(layer, wanted, None)
            if inputs.shape[1] != goal.shape[1]:
                return None
            batches = len(calibration.batches)
            goals = {name: _sampled(goal, batches, index)}
            total.add(_sampled(inputs, batches, index), goals)
    return finite_moments(name, total)


def about_means(moments: Moments) -> Tensor:
    """Gram matrices about the means, groups x inputs x inputs, float64.

    Sums are float32, so that where means are large what is left is noise; the diagonal is raised
    by as much.
    """
    gram, mean = moments.gram.double(), moments.mean.double()
    noise = _NOISE * gram.diagonal(dim1=1, dim2=2).mean(1)
    centred = gram - mean[:, :, None] * mean[:, None, :]
    return centred + torch.diag_embed(noise[:, None].expand(mean.shape))


def _called(
    model: nn.Module, layer: nn.Module, calibration: Calibration, index: int
) -> tuple[Tensor, Tensor]:
    """Input and output of a layer for one batch; later layers are not computed."""
    found: list[tuple[Tensor, Tensor]] = []

    def record(_: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
        found.append((args[0].clone(), first_tensor(output).clone()))
        raise Stop

    handle = layer.register_forward_hook(record)
    try:
        until_stop(partial(calibration.run, model, index))
    finally:
        handle.remove()
    return found[0]


def _sampled(rows: Tensor, batches: int, seed: int) -> Tensor:
    """Some of groups x tokens x inputs; the same tokens for the same seed and count."""
    most = max(_SAMPLE // batches, 1)
    count = rows.shape[1]
    if count <= most:
        return rows
    generator = torch.Generator().manual_seed(seed)
    return rows[:, torch.randperm(count, generator=generator)[:most]]


@dataclass(frozen=True)
class Columns:
    """Columns of one group of a layer's weight, by the unit that they belong to.

    Attributes:
        group: number of the layer's group.
        order: columns; those of unit 0 first, then those of unit 1 and so on, then all others.
        size: columns of one unit.
    """

    group: int
    order: Tensor
    size: int


def unit_columns(model: nn.Module, group: ChannelGroup, place: Place) -> list[Columns]:
    """The columns of a group's units in a reading layer's weight, for each group of the layer."""
    layer = model.get_submodule(place.module)
    weight = weight_of(layer)
    width, area = weight.shape[1], weight[0, 0].numel()
    found = []
    for number in range(groups_in(layer)):
        mine = place.index // width == number
        channel, unit = place.index[mine] % width, place.unit[mine]
        channel = channel[unit.argsort(stable=True)]
        own = (channel[:, None] * area + torch.arange(area)).flatten()
        others = torch.ones(width * area, dtype=torch.bool)
        others[own] = False
        order = torch.cat([own, others.nonzero()[:, 0]])
        found.append(Columns(number, order, len(own) // group.units))
    return found
