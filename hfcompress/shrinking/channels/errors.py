"""The loss of quality at each width of a group of channels: the change of the predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.moments import Moments, grouped_weight
from hfcompress.models.matrices import weight_matrix, write_matrix
from hfcompress.shrinking.channels.groups import ChannelGraph, ChannelGroup
from hfcompress.shrinking.channels.moments import about_means, unit_columns
from hfcompress.shrinking.channels.repair import ridge, running_norm
from hfcompress.shrinking.channels.sides import LAYERS
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.quality import divergence, predictions
from hfcompress.utils import ShowProgress

_LEVELS = (1.0, 7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8)
"""Shares of a group's units at which the change of the predictions is measured."""


def measured_channel_errors(
    model: nn.Module,
    graph: ChannelGraph,
    kept: Mapping[str, Mapping[int, Tensor]],
    moments: Mapping[str, Moments],
    rows: Calibration,
    dense: Sequence[Tensor],
    config: ShrinkConfig,
    progress: ShowProgress,
) -> dict[str, dict[int, float]]:
    """Divergence from the dense model with one group at one width, the others as they are.

    Args:
        model: left as it was.
        graph: from `trace` of it.
        kept: by group and width, the units that would stay.
        moments: of what layers read, for repair ``ridge``.
        rows: what is predicted.
        dense: the dense model's predictions.
        config: its repair.
        progress: receives stage, count and total.
    """
    start = divergence(dense, predictions(model, rows))
    errors: dict[str, dict[int, float]] = {}
    for number, group in enumerate(graph.groups):
        progress("measuring widths", number, len(graph.groups))
        here = errors[group.name] = {}
        for width in _levels(list(kept[group.name])):
            if width == group.units:
                here[width] = start
                continue
            with _tried(model, graph, group, kept[group.name][width], moments, config):
                here[width] = divergence(dense, predictions(model, rows))
    return errors


def centred_gram(model: nn.Module, graph: ChannelGraph, name: str, moments: Moments) -> Tensor:
    """A layer's Gram matrices, about the means where a bias or a batch norm takes those."""
    if _mean_taker(model, graph, name) is None:
        return moments.gram.double()
    return about_means(moments)


def _levels(widths: Sequence[int]) -> list[int]:
    most = max(widths)
    near = {min(widths, key=lambda width: abs(width - level * most)) for level in _LEVELS}
    return sorted({*near, min(widths)})


def _mean_taker(model: nn.Module, graph: ChannelGraph, name: str) -> tuple[Tensor, float] | None:
    """The tensor that makes up for a changed mean of a layer's outputs, and with which sign."""
    norm = running_norm(model, graph, name)
    if norm is not None:
        return norm, 1.0
    bias = model.get_submodule(name).bias
    return (bias.data, -1.0) if isinstance(bias, Tensor) else None


@contextmanager
def _tried(
    model: nn.Module,
    graph: ChannelGraph,
    group: ChannelGroup,
    keep: Tensor,
    moments: Mapping[str, Moments],
    config: ShrinkConfig,
) -> Iterator[None]:
    """A group's other units are not read inside, and what reads them makes up for it."""
    stays = torch.zeros(group.units, dtype=torch.bool)
    stays[keep] = True
    before: list[tuple[Tensor, Tensor]] = []
    try:
        for name in dict.fromkeys(place.module for place in group.of("inputs")):
            layer = model.get_submodule(name)
            if not isinstance(layer, LAYERS):
                before += _zeroed(model, group, name, ~stays)
                continue
            weight, old = layer.weight, grouped_weight(layer).double()
            seen = moments.get(name) if config.resolved_repair == "ridge" else None
            new = _without_units(model, graph, group, name, stays, seen, config.damping)
            before.append((weight, weight.data))
            weight.data = torch.empty_like(weight)
            with torch.no_grad():
                write_matrix(layer, new.reshape(weight_matrix(layer).shape).to(weight))
                taker = _mean_taker(model, graph, name)
                if seen is not None and taker is not None:
                    before.append((taker[0], taker[0].clone()))
                    moved = ((new - old) @ seen.mean.double()[:, :, None]).flatten()
                    taker[0].add_(taker[1] * moved.to(taker[0]))
        yield
    finally:
        for tensor, data in reversed(before):
            if isinstance(tensor, nn.Parameter):
                tensor.data = data
            else:
                tensor.copy_(data)


def _zeroed(
    model: nn.Module, group: ChannelGroup, name: str, gone: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Zero what reads some units in a layer of another kind.

    Returns:
        its parameters, and their data before.
    """
    before: list[tuple[Tensor, Tensor]] = []
    for place in group.of("inputs"):
        for (path, dimension), index in place.slots(model) if place.module == name else ():
            weight = model.get_parameter(path)
            before.append((weight, weight.data))
            weight.data = weight.data.index_fill(dimension, index[gone[place.unit]], 0)
    return before


def _without_units(
    model: nn.Module,
    graph: ChannelGraph,
    group: ChannelGroup,
    name: str,
    stays: Tensor,
    moments: Moments | None,
    damping: float,
) -> Tensor:
    """A layer's weight, groups x outputs x inputs, with zeros for removed units."""
    weight = grouped_weight(model.get_submodule(name)).detach().clone().double()
    gone = torch.zeros(weight.shape[0], weight.shape[2], dtype=torch.bool)
    for place in group.of("inputs"):
        if place.module == name:
            for columns in unit_columns(model, group, place):
                own = columns.order[: columns.size * group.units]
                gone[columns.group, own] = ~stays.repeat_interleave(columns.size)
    if moments is None:
        return weight.masked_fill(gone[:, None], 0.0)
    gram = centred_gram(model, graph, name, moments)
    fitted = torch.zeros_like(weight)
    for number, here in enumerate(gram):
        left = (~gone[number]).nonzero()[:, 0]
        cross = (weight[number] @ here)[:, left]
        small = here[left][:, left]
        fitted[number][:, left] = ridge(
            weight[number][None][:, :, left], small[None], cross[None], damping
        )[0]
    return fitted
