"""Choose the units that stay at each width, measure the widths, and apply the chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby

import torch
from torch import Tensor, nn

from hfcompress.calibration.importance import importance
from hfcompress.errors import TargetError
from hfcompress.models.matrices import weight_matrix
from hfcompress.models.sublayers import Sublayer
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.obs import eliminate
from hfcompress.shrinking.plan import Candidates, ShrinkContext
from hfcompress.shrinking.quality import metric_root
from hfcompress.shrinking.sublayers.activations import Streams
from hfcompress.shrinking.sublayers.errors import levels, measured_errors
from hfcompress.shrinking.sublayers.repair import Centred, Projection, centred, install, repaired
from hfcompress.shrinking.sublayers.scores import absolute_sums, magnitudes, mask_gradients
from hfcompress.shrinking.widths import Allowed


@dataclass
class SublayerContext:
    """Data that every choice in a transformer needs, collected once.

    Attributes:
        shared: config, rows and progress.
        dense: the dense model without the dropped layers.
        metrics: for each sublayer R with R'R the Fisher matrix at its output; None to count all
            directions alike.
        tokens: for each sublayer and batch, how much each real token counts.
    """

    shared: ShrinkContext
    dense: nn.Module
    metrics: dict[str, Tensor | None] = field(default_factory=dict)
    tokens: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def config(self) -> ShrinkConfig:
        """The config of the call."""
        return self.shared.config


def look_at_importance(parts: Sequence[Sublayer], context: SublayerContext) -> None:
    """Put into the context how much outputs and tokens matter, where the config uses it.

    Raises:
        CalibrationError: a sublayer that does not reach the logits.
    """
    config, calibration = context.config, context.shared.calibration
    if calibration is None or not config.uses_moments:
        return
    if config.output_importance or config.token_importance:
        outs = {part.name: part.out(context.dense) for part in parts}
        context.shared.progress("importance", 0, 1)
        found = importance(context.dense, outs, calibration, config.seed, matrices=True)
        share = config.token_importance
        for name, part in found.items():
            assert part.matrix is not None
            context.metrics[name] = metric_root(part.matrix, config.output_importance)
            context.tokens[name] = [1 - share + share * tokens for tokens in part.tokens]


def find_candidates(
    model: nn.Module, parts: Sequence[Sublayer], allowed: Allowed, context: SublayerContext
) -> Candidates:
    """Find the units to keep at each allowed width of each sublayer, and the cost; nothing changes.

    Args:
        model: dense, or shrunk in earlier rounds.
        parts: sublayers that may lose units.
        allowed: widths that each may have.
        context: from `look_at_importance`.
    """
    config, progress = context.config, context.shared.progress
    found = Candidates(scores=unit_scores(model, parts, context))
    projections: dict[str, dict[int, Projection]] = {}
    moments: dict[str, Centred] = {}
    measures_errors = config.resolved_allocation == "optimal"
    if config.uses_moments and (not found.scores or measures_errors):
        moments = _moments(model, parts, context)
    for index, part in enumerate(parts):
        progress("choosing units", index, len(parts))
        own = moments.get(part.name)
        kept = units_at(part, model, allowed[part.name], own, found, context)
        found.kept[part.name] = kept
        if measures_errors:
            widths = [w for w in levels(allowed[part.name]) if w < part.units(model)]
            projections[part.name] = {
                w: repaired(part, model, kept[w], own, config) for w in widths
            }
    if measures_errors:
        rows, dense = context.shared.reference()
        measuring = partial(progress, "measuring widths")
        found.errors = measured_errors(model, parts, projections, rows, dense, measuring)
    return found


def unit_scores(
    model: nn.Module, parts: Sequence[Sublayer], context: SublayerContext
) -> dict[str, Tensor]:
    """A score of each unit by the config's method; nothing for ``reconstruction``."""
    config = context.config
    if config.score == "reconstruction":
        return {}
    if config.score == "batch_norm":
        raise TargetError(
            f"{type(model).__name__} has no batch norms whose scale could be a score; "
            f"write another score"
        )
    if config.score in ("magnitude", "l1"):
        rule = magnitudes if config.score == "magnitude" else absolute_sums
        return {part.name: rule(model, part) for part in parts}
    assert context.shared.calibration is not None
    context.shared.progress("gradients", 0, 1)
    squared = config.score == "fisher"
    return mask_gradients(model, parts, context.shared.calibration, squared=squared)


def units_at(
    part: Sublayer,
    model: nn.Module,
    widths: Sequence[int],
    moments: Centred | None,
    candidates: Candidates,
    context: SublayerContext,
) -> dict[int, Tensor]:
    """The units that stay at each of some widths, ascending."""
    if part.name in candidates.scores:
        order = candidates.scores[part.name].argsort(descending=True, stable=True)
        return {width: order[:width].sort().values for width in widths}
    assert moments is not None
    return eliminate(
        weight_matrix(part.out(model)),
        moments.gram,
        moments.cross,
        widths,
        size=part.size,
        damping=context.config.damping,
        metric=context.metrics.get(part.name),
    )


def apply_widths(
    model: nn.Module,
    parts: Sequence[Sublayer],
    widths: Mapping[str, int],
    candidates: Candidates,
    context: SublayerContext,
) -> dict[str, Tensor]:
    """Shrink, sublayer after sublayer: each is chosen and fitted on the model as shrunk so far.

    Args:
        model: changed in place.
        parts: sublayers that may lose units.
        widths: how many each keeps.
        candidates: found before anything was removed.
        context: from `look_at_importance`.

    Returns:
        for each sublayer the units that stayed.
    """
    kept = {part.name: torch.arange(part.units(model)) for part in parts}
    # Nothing is touched before the first change: there is nothing to make up for.
    first = next(
        (i for i, part in enumerate(parts) if widths[part.name] < len(kept[part.name])), None
    )
    todo = {part.name for part in parts[first:]} if first is not None else set()
    if not todo:
        return kept
    for part, moments in _passing(model, parts, context):
        if part.name in todo:
            width = widths[part.name]
            keep = units_at(part, model, [width], moments(), candidates, context)[width]
            install(part, model, repaired(part, model, keep, moments(), context.config))
            kept[part.name] = keep
    return kept


def _passing(
    model: nn.Module, parts: Sequence[Sublayer], context: SublayerContext
) -> Iterator[tuple[Sublayer, Callable[[], Centred | None]]]:
    """Each sublayer in turn and its moments (None where the config uses none); what is done to
    it before the next is asked for counts from there on."""
    if not context.config.uses_moments:
        yield from ((part, lambda: None) for part in parts)
        return
    streams = _streams(model, context)
    for layer, members in _by_layer(parts, context):
        streams.enter(members)
        for part in members:
            yield part, lru_cache(partial(_centred, part, model, streams))
        streams.leave(layer)


def _moments(
    model: nn.Module, parts: Sequence[Sublayer], context: SublayerContext
) -> dict[str, Centred]:
    """Moments of every sublayer of the model as it is."""
    if model is not context.dense:
        seen = {part.name: look() for part, look in _passing(model, parts, context)}
        return {name: one for name, one in seen.items() if one is not None}
    found: dict[str, Centred] = {}
    streams = _streams(model, context)
    for _, members in _by_layer(parts, context):
        moments = streams.dense_moments(members)
        found |= {part.name: centred(part.out(model), moments[part.name]) for part in members}
    return found


def _streams(model: nn.Module, context: SublayerContext) -> Streams:
    assert context.shared.calibration is not None
    follow = context.config.follow_dense
    return Streams(context.dense, model, context.shared.calibration, follow, context.tokens)


def _by_layer(
    parts: Sequence[Sublayer], context: SublayerContext
) -> Iterator[tuple[str, list[Sublayer]]]:
    layers = len({part.layer for part in parts})
    for number, (layer, members) in enumerate(groupby(parts, key=lambda part: part.layer)):
        context.shared.progress("layers", number, layers)
        yield layer, list(members)


def _centred(part: Sublayer, model: nn.Module, streams: Streams) -> Centred:
    return centred(part.out(model), streams.moments(part))
