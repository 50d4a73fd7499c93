"""``shrink``: smaller matrices for a budget, by one config."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.hooks import evaluating
from hfcompress.errors import CalibrationError, ConfigError, TargetError
from hfcompress.measure.size import count_parameters
from hfcompress.models.architectures import blocks, family_of
from hfcompress.models.sublayers import Sublayer, known_family, sublayers
from hfcompress.models.surgery import keep_layers
from hfcompress.shrinking.channels.shrink import shrink_channels
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.quality import divergence, interpolated, predictions
from hfcompress.shrinking.report import Amount, ShrinkReport, SublayerReport
from hfcompress.shrinking.sublayers.budget import Budget
from hfcompress.shrinking.sublayers.costs import layer_macs
from hfcompress.shrinking.sublayers.latency_table import with_widths
from hfcompress.shrinking.sublayers.selection import Options, Surroundings, apply_widths, options
from hfcompress.shrinking.widths import Costs, Widths, allowed_widths, optimal, ranked, uniform
from hfcompress.utils import Tell, is_pretrained


def shrink(
    model: nn.Module,
    config: ShrinkConfig,
    calibration: Calibration | None = None,
    *,
    recover: Callable[[nn.Module], object] | None = None,
    tell: Tell = lambda doing, done, whole: None,
) -> ShrinkReport:
    """Remove heads, neurons and layers, or channels, until a model fits a budget.

    Transformers of a known family lose attention heads, feed-forward neurons and layers; any
    other network with convolutions loses channels, with all that depends on them (residual
    connections, batch norms, depthwise convolutions).

    Parameters keep their identity and get smaller data, so that an optimizer which holds them
    goes on (see `hfcompress.models.surgery`); the model saves and reloads as ever.

    Args:
        model: of a known family, or with convolutions; changed in place.
        config: the budget, and how what goes is chosen.
        calibration: examples, for all but magnitudes without repair.
        recover: trains the model after each of several ``rounds`` but the last.
        tell: is told how far it is.

    Returns:
        what went, and the budget as predicted and as measured.

    Raises:
        TargetError: a family that is not known, or nothing in it that may go.
        ConfigError: a budget below what can be reached, or above the dense model.
        CalibrationError: calibration data that are missing, too few, or without labels where
            the score needs them.
    """
    rows = _calibration(config, calibration)
    if has_channels(model):
        return shrink_channels(model, config, rows, recover, tell)
    _removable(model, config)
    with evaluating(model):
        if config.dry_run and config.layers is not None:
            model = copy.deepcopy(model)
        dense = copy.deepcopy(model) if _needs_dense(config) else model
        around = Surroundings(config, dense, rows, tell)
        around.judge()
        budget = Budget(dense, config, rows)
        size = count_parameters(model)
        dropped: tuple[int, ...] = ()
        if config.layers is not None:
            dropped = drop_layers(model, config.layers, around)
            around.dense = copy.deepcopy(model)
        parts, notes = _removable(model, config)
        around.look(parts)
        before = {part.name: part.units(model) for part in parts}
        kept = {name: torch.arange(units) for name, units in before.items()}
        found, widths = Options(), before
        for number in range(config.rounds if config.budget else 0):
            # As long as nothing has gone the dense model is looked at: one stream, not two.
            now, progress = model if number else around.dense, (number + 1) / config.rounds
            found, widths = _plan(now, parts, budget, around, progress)
            if config.dry_run:
                kept = {name: found.kept[name][width] for name, width in widths.items()}
            else:
                stayed = apply_widths(model, parts, widths, found, around)
                kept = {name: kept[name][stayed[name]] for name in kept}
                if recover is not None and number + 1 < config.rounds:
                    recover(model)
        if is_pretrained(model) and not config.dry_run:
            from hfcompress.checkpoint.save import record_shapes  # imports transformers

            record_shapes(model)
        after = with_widths(model, parts, widths) if config.dry_run else model
        return ShrinkReport(
            budget=config.budget,
            requested=getattr(config, config.budget) if config.budget else None,
            parts=tuple(
                SublayerReport(
                    part.name,
                    part.kind,
                    before[part.name],
                    tuple(kept[part.name].tolist()),
                    _error(found, part, widths),
                )
                for part in parts
            ),
            dropped_layers=dropped,
            macs=Amount(budget.macs, layer_macs(after, sublayers(after), budget.length)),
            parameters=Amount(size, count_parameters(after)),
            latency=budget.latencies(None if config.dry_run else model),
            dry_run=config.dry_run,
            notes=notes,
        )


def check_shrinkable(model: nn.Module) -> None:
    """Refuse a model in which nothing is known that could go.

    Raises:
        TargetError: no known family, and no convolutions.
    """
    if not has_channels(model):
        known_family(model)


def has_channels(model: nn.Module) -> bool:
    """Whether `shrink` removes channels: no transformer of a known family, and convolutions."""
    if family_of(model) is not None:
        return False
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def _error(found: Options, part: Sublayer, widths: Widths) -> float | None:
    if part.name not in found.errors:
        return None
    width = widths[part.name]
    (error,) = interpolated(found.errors[part.name], [width], power=2.0).values()
    return error


def _plan(
    model: nn.Module,
    parts: Sequence[Sublayer],
    budget: Budget,
    around: Surroundings,
    progress: float,
) -> tuple[Options, Widths]:
    """What could go, and how many units each sublayer is to keep."""
    config = around.config
    allowed = {
        part.name: allowed_widths(
            part.units(model),
            config.min_heads if part.kind == "heads" else config.min_neurons,
            config.multiple_of if part.kind == "neurons" else 1,
        )
        for part in parts
    }
    found = options(model, parts, allowed, around)

    def choose(costs: Costs) -> Widths:
        if config.spreads == "optimal":
            errors = {
                name: interpolated(found.errors[name], widths) for name, widths in allowed.items()
            }
            return optimal(costs.table, errors, costs.limit)
        if config.spreads == "global":
            scores = {name: score.tolist() for name, score in found.scores.items()}
            return ranked(costs.table, scores, costs.limit)
        return uniform(costs.table, costs.limit)

    return found, budget.fit(model, parts, allowed, choose, progress)


def _removable(model: nn.Module, config: ShrinkConfig) -> tuple[list[Sublayer], tuple[str, ...]]:
    """The sublayers that may lose units, and what to say of the others."""
    wanted = {"heads": config.heads, "neurons": config.neurons}
    if not any(wanted.values()):
        raise TargetError(
            f"{type(model).__name__} has no channels that go, only heads and neurons; "
            f"write heads: true or neurons: true"
        )
    found = [part for part in sublayers(model) if wanted[part.kind]]
    parts = [part for part in found if part.removable]
    if not parts:
        raise TargetError(
            "this family fixes the number of heads in its code, so that nothing may go; "
            "write neurons: true"
        )
    if len(parts) < len(found):
        return parts, ("heads stay: this family fixes their number in its code",)
    return parts, ()


def _needs_dense(config: ShrinkConfig) -> bool:
    """Whether the dense model is looked at after something has gone."""
    return config.uses_moments or config.rounds > 1 or config.budget in ("latency", "speedup")


def _calibration(config: ShrinkConfig, calibration: Calibration | None) -> Calibration | None:
    if calibration is not None:
        return calibration.first(config.calibration_rows)
    if config.needs_calibration:
        raise CalibrationError(
            f"score {config.score} with these options needs calibration data; "
            f"pass Calibration(batches) to shrink"
        )
    return None


def drop_layers(model: nn.Module, keep: int, around: Surroundings) -> tuple[int, ...]:
    """Drop layers until ``keep`` are left.

    Args:
        model: changed in place.
        keep: how many stay.
        around: rows and the dense model's predictions.

    Returns:
        the numbers of those that went, ascending.

    Raises:
        ConfigError: the model has fewer layers.
    """
    layers = list(blocks(model).values())
    if keep > len(layers):
        raise ConfigError(f"layers {keep} is above what the model has; it has {len(layers)}")
    assert around.judges is not None
    fixed = {0} if cast(Any, model).config.model_type == "modernbert" else set()
    gone: list[int] = []
    while len(layers) - len(gone) > keep:
        around.tell("choosing layers", len(gone), len(layers) - keep)
        losses: dict[int, float] = {}
        for number in sorted(set(range(len(layers))) - set(gone) - fixed):
            with _skipped([layers[index] for index in [*gone, number]]):
                seen = predictions(model, around.judges)
            losses[number] = divergence(around.predictions, seen)
        gone.append(min(losses, key=losses.__getitem__))
    if gone:
        keep_layers(model, [number for number in range(len(layers)) if number not in gone])
    return tuple(sorted(gone))


@contextmanager
def _skipped(layers: list[nn.Module]) -> Iterator[None]:
    """Layers pass on what they read, inside."""

    def skip(_: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        return args[0] if isinstance(result, Tensor) else (args[0], *result[1:])

    handles = [layer.register_forward_hook(skip) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
