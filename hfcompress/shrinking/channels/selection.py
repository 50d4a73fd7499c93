"""Choose the channels that stay at each width, and measure each width by the predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import nn

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.importance import Importance, importance
from hfcompress.calibration.moments import Moments, grouped_weight, groups_of
from hfcompress.shrinking.channels.errors import centred_gram, measured_channel_errors
from hfcompress.shrinking.channels.groups import ChannelGraph, ChannelGroup, Place
from hfcompress.shrinking.channels.moments import Columns, input_moments, unit_columns
from hfcompress.shrinking.channels.scores import channel_scores, weight_norms
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.obs import Reader, eliminate_shared
from hfcompress.shrinking.plan import Candidates, ShrinkContext
from hfcompress.shrinking.quality import metric_root
from hfcompress.shrinking.widths import Allowed


def find_channel_candidates(
    model: nn.Module, graph: ChannelGraph, allowed: Allowed, context: ShrinkContext
) -> Candidates:
    """Find the units to keep at each allowed width of each group, and the cost; nothing changes.

    Args:
        model: dense, or shrunk in earlier rounds.
        graph: from `trace` of it.
        allowed: widths that each group may have.
        context: the config, rows and the dense model's predictions.
    """
    config, calibration = context.config, context.calibration
    found = Candidates(scores=channel_scores(model, graph, config.score, calibration))
    moments: dict[str, Moments] = {}
    measures_errors = config.resolved_allocation == "optimal"
    if config.score == "reconstruction" or (measures_errors and config.resolved_repair == "ridge"):
        assert calibration is not None
        names = {place.module for group in graph.groups for place in group.of("inputs")}
        layers = {name: model.get_submodule(name) for name in graph.layers if name in names}
        context.progress("moments", 0, 1)
        moments = input_moments(model, layers, calibration)
    reader = _readers(model, graph, moments, config, calibration)
    for number, group in enumerate(graph.groups):
        context.progress("choosing channels", number, len(graph.groups))
        widths = allowed[group.name]
        readers = []
        if config.score == "reconstruction":
            readers = [
                reader(group, place, columns) for place, columns in _pairs(model, group, moments)
            ]
        if readers:
            kept = eliminate_shared(readers, group.units, widths, damping=config.damping)
        else:
            scores = found.scores.get(group.name)
            if scores is None:  # nothing that reads the channels can be fitted anew
                scores = weight_norms(model, group)
            order = scores.argsort(descending=True, stable=True)
            kept = {width: order[:width].sort().values for width in widths}
        found.kept[group.name] = kept
    if measures_errors:
        rows, dense = context.reference()
        found.errors = measured_channel_errors(
            model, graph, found.kept, moments, rows, dense, config, context.progress
        )
    return found


def _pairs(
    model: nn.Module, group: ChannelGroup, moments: Mapping[str, Moments]
) -> Iterator[tuple[Place, Columns]]:
    for place in group.of("inputs"):
        if place.module in moments:
            for columns in unit_columns(model, group, place):
                yield place, columns


def _readers(
    model: nn.Module,
    graph: ChannelGraph,
    moments: Mapping[str, Moments],
    config: ShrinkConfig,
    calibration: Calibration | None,
) -> Callable[[ChannelGroup, Place, Columns], Reader]:
    """Makes the `Reader` of one layer, or of one group of it."""
    seen: dict[str, Importance] = {}
    if config.score == "reconstruction":
        assert calibration is not None
        layers = {name: model.get_submodule(name) for name in moments}
        plain = {name: layer for name, layer in layers.items() if groups_of(layer) == 1}
        matrices = config.output_importance > 0
        seen = importance(
            model, plain, calibration, config.seed, matrices=matrices, skip_unreached=True
        )

    def reader(group: ChannelGroup, place: Place, columns: Columns) -> Reader:
        layer = model.get_submodule(place.module)
        gram = centred_gram(model, graph, place.module, moments[place.module])[columns.group]
        weight = grouped_weight(layer)[columns.group].detach()
        part = seen.get(place.module)
        moved, metric = 1.0, None
        if part is not None:
            moved = float(part.outputs.mean()) * graph.positions[place.module]
            if part.matrix is not None:
                metric = metric_root(part.matrix, config.output_importance)
        order = columns.order
        return Reader(
            weight[:, order], gram[order][:, order], columns.size, max(moved, 1e-30), metric
        )

    return reader
