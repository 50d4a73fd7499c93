"""Which units would stay at each width, what each width costs in quality, and which go in fact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.importance import importance
from hfcompress.errors import TargetError
from hfcompress.models.architectures import weight_matrix
from hfcompress.models.sublayers import Sublayer
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.obs import eliminate
from hfcompress.shrinking.quality import metric_root, predictions
from hfcompress.shrinking.sublayers.activations import Streams
from hfcompress.shrinking.sublayers.errors import levels, measured_errors
from hfcompress.shrinking.sublayers.repair import Centred, Projection, centred, install, repaired
from hfcompress.shrinking.sublayers.scores import absolute_sums, magnitudes, mask_gradients
from hfcompress.utils import Tell

"""Is told what is being done, how far it is and how far it goes."""
Widths = Mapping[str, int]
Scores = Mapping[str, Tensor]


@dataclass
class Surroundings:
    """What every choice looks at, collected once.

    Attributes:
        config: how to choose.
        dense: the dense model (the model itself as long as nothing has gone).
        calibration: rows; None where nothing needs them.
        metrics: for each sublayer R with R'R the Fisher matrix at its output; None to count all
            directions alike.
        tokens: for each sublayer and batch, how much each real token counts.
        judges: rows on which predictions are compared.
        predictions: of the dense model on those rows.
        tell: progress.
    """

    config: ShrinkConfig
    dense: nn.Module
    calibration: Calibration | None
    tell: Tell
    metrics: dict[str, Tensor | None] = field(default_factory=dict)
    tokens: dict[str, list[Tensor]] = field(default_factory=dict)
    judges: Calibration | None = None
    predictions: list[Tensor] = field(default_factory=list)

    def judge(self) -> None:
        """Note the dense model's predictions, where the config compares any."""
        config = self.config
        if self.calibration and (config.spreads == "optimal" or config.layers is not None):
            self.judges = self.calibration.spread(config.table_rows)
            self.predictions = predictions(self.dense, self.judges)

    def look(self, parts: Sequence[Sublayer]) -> None:
        """Note how much outputs and tokens matter in the dense model, where the config asks.

        Raises:
            CalibrationError: a sublayer that does not reach the logits.
        """
        config = self.config
        if self.calibration is None or not config.uses_moments:
            return
        if config.output_importance or config.token_importance:
            outs = {part.name: part.out(self.dense) for part in parts}
            self.tell("importance", 0, 1)
            found = importance(self.dense, outs, self.calibration, config.seed, matrices=True)
            share = config.token_importance
            for name, part in found.items():
                assert part.matrix is not None
                self.metrics[name] = metric_root(part.matrix, config.output_importance)
                self.tokens[name] = [1 - share + share * tokens for tokens in part.tokens]


@dataclass
class Options:
    """What could go, before anything goes.

    Attributes:
        kept: for each sublayer and allowed width, the units that would stay.
        scores: for each sublayer a score of each unit, where the method has one.
        errors: for each sublayer and some widths, the measured change of the predictions.
    """

    kept: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, dict[int, float]] = field(default_factory=dict)


def options(
    model: nn.Module,
    parts: Sequence[Sublayer],
    allowed: Mapping[str, Sequence[int]],
    around: Surroundings,
) -> Options:
    """Look at the model as it is; nothing changes.

    Args:
        model: dense, or shrunk in earlier rounds.
        parts: sublayers that may lose units.
        allowed: widths that each may have.
        around: what choices look at.
    """
    config = around.config
    known = Options(scores=unit_scores(model, parts, around))
    tried: dict[str, dict[int, Projection]] = {}
    moments: dict[str, Centred] = {}
    if around.config.uses_moments and (not known.scores or config.spreads == "optimal"):
        moments = _moments(model, parts, around)
    for index, part in enumerate(parts):
        around.tell("choosing units", index, len(parts))
        here = moments.get(part.name)
        known.kept[part.name] = units_at(part, model, allowed[part.name], here, known, around)
        if config.spreads == "optimal":
            wanted = [w for w in levels(allowed[part.name]) if w < part.units(model)]
            tried[part.name] = {
                w: repaired(part, model, known.kept[part.name][w], here, config) for w in wanted
            }
    if config.spreads == "optimal":
        assert around.judges is not None

        def tell(done: int, whole: int) -> None:
            around.tell("measuring widths", done, whole)

        known.errors = measured_errors(model, parts, tried, around.judges, around.predictions, tell)
    return known


def unit_scores(
    model: nn.Module, parts: Sequence[Sublayer], around: Surroundings
) -> dict[str, Tensor]:
    """A score of each unit by the config's method; nothing for ``reconstruction``."""
    config = around.config
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
    assert around.calibration is not None
    around.tell("gradients", 0, 1)
    squared = config.score == "fisher"
    return mask_gradients(model, parts, around.calibration, squared=squared)


def units_at(
    part: Sublayer,
    model: nn.Module,
    widths: Sequence[int],
    moments: Centred | None,
    known: Options,
    around: Surroundings,
) -> dict[int, Tensor]:
    """The units that stay at each of some widths, ascending."""
    if part.name in known.scores:
        order = known.scores[part.name].argsort(descending=True, stable=True)
        return {width: order[:width].sort().values for width in widths}
    assert moments is not None
    return eliminate(
        weight_matrix(part.out(model)),
        moments.gram,
        moments.cross,
        widths,
        size=part.size,
        damping=around.config.damping,
        metric=around.metrics.get(part.name),
    )


def apply_widths(
    model: nn.Module,
    parts: Sequence[Sublayer],
    widths: Widths,
    known: Options,
    around: Surroundings,
) -> dict[str, Tensor]:
    """Shrink, sublayer after sublayer: each is chosen and fitted on the model as shrunk so far.

    Args:
        model: changed in place.
        parts: sublayers that may lose units.
        widths: how many each keeps.
        known: what was found before anything went.
        around: what choices look at.

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
    for part, moments in _passing(model, parts, around):
        if part.name in todo:
            width = widths[part.name]
            keep = units_at(part, model, [width], moments(), known, around)[width]
            install(part, model, repaired(part, model, keep, moments(), around.config))
            kept[part.name] = keep
    return kept


def _passing(
    model: nn.Module, parts: Sequence[Sublayer], around: Surroundings
) -> Iterator[tuple[Sublayer, Callable[[], Centred | None]]]:
    """Each sublayer in turn and its moments (None where the config uses none); what is done to
    it before the next is asked for counts from there on."""
    if not around.config.uses_moments:
        yield from ((part, lambda: None) for part in parts)
        return
    streams = _streams(model, around)
    for layer, members in _by_layer(parts, around):
        streams.enter(members)
        for part in members:
            yield part, lru_cache(partial(_centred, part, model, streams))
        streams.leave(layer)


def _moments(
    model: nn.Module, parts: Sequence[Sublayer], around: Surroundings
) -> dict[str, Centred]:
    """Moments of every sublayer of the model as it is."""
    if model is not around.dense:
        seen = {part.name: look() for part, look in _passing(model, parts, around)}
        return {name: one for name, one in seen.items() if one is not None}
    found: dict[str, Centred] = {}
    streams = _streams(model, around)
    for _, members in _by_layer(parts, around):
        moments = streams.dense_moments(members)
        found |= {part.name: centred(part.out(model), moments[part.name]) for part in members}
    return found


def _streams(model: nn.Module, around: Surroundings) -> Streams:
    assert around.calibration is not None
    follow = around.config.follow_dense
    return Streams(around.dense, model, around.calibration, follow, around.tokens)


def _by_layer(
    parts: Sequence[Sublayer], around: Surroundings
) -> Iterator[tuple[str, list[Sublayer]]]:
    layers = len({part.layer for part in parts})
    for number, (layer, members) in enumerate(groupby(parts, key=lambda part: part.layer)):
        around.tell("layers", number, layers)
        yield layer, list(members)


def _centred(part: Sublayer, model: nn.Module, streams: Streams) -> Centred:
    return centred(part.out(model), streams.moments(part))
