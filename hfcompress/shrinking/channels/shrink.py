"""`shrink` for convolutional networks: channels and filters go, for a budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Batch, Calibration
from hfcompress.calibration.hooks import evaluating
from hfcompress.errors import CalibrationError, TargetError
from hfcompress.measure.size import count_parameters
from hfcompress.shrinking.channels.budget import ChannelBudget, allowed_channels
from hfcompress.shrinking.channels.costs import (
    ChannelCosts,
    least_change,
    macs,
    ranked_channels,
    uniform_channels,
)
from hfcompress.shrinking.channels.graph import ChannelGraph, trace
from hfcompress.shrinking.channels.repair import estimate_batch_norms, repair_channels
from hfcompress.shrinking.channels.selection import ChannelOptions, channel_options
from hfcompress.shrinking.channels.surgery import cut
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.quality import interpolated, predictions
from hfcompress.shrinking.report import Amount, ShrinkReport, SublayerReport
from hfcompress.shrinking.widths import Widths
from hfcompress.utils import Tell, is_pretrained


@dataclass
class _Work:
    """One call: what its rounds share.

    Attributes:
        alive: for each layer that lost outputs, the numbers in the dense model of those left.
        kept: for each group the units that are left.
        judged: rows and the dense model's predictions on them, once they are asked for.
    """

    model: nn.Module
    dense: nn.Module
    graph: ChannelGraph
    config: ShrinkConfig
    calibration: Calibration | None
    tell: Tell
    alive: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    judged: tuple[Calibration, list[Tensor]] | None = None

    def judge(self) -> tuple[Calibration, Sequence[Tensor]]:
        """Rows on which predictions are compared, and the dense model's."""
        if self.judged is None:
            assert self.calibration is not None
            rows = self.calibration.spread(self.config.table_rows)
            self.judged = rows, predictions(self.dense, rows)
        return self.judged


def shrink_channels(
    model: nn.Module,
    config: ShrinkConfig,
    calibration: Calibration | None,
    recover: Callable[[nn.Module], object] | None,
    tell: Tell,
) -> ShrinkReport:
    """Remove channels until a model fits a budget; see `shrink`.

    Raises:
        MissingExtraError: Torch-Pruning is not installed.
        TargetError: nothing may go, or layers are to go.
        ConfigError: a budget below what can be reached, or above the dense model.
        CalibrationError: no row that says how large images are.
    """
    _check(model, config)
    example = example_row(model, calibration)
    with evaluating(model):
        graph = trace(model, example)
        dense = copy.deepcopy(model)
        work = _Work(model, dense, graph, config, calibration, tell)
        work.kept = {group.name: torch.arange(group.units) for group in graph.groups}
        before = {group.name: group.units for group in graph.groups}
        size, costs = count_parameters(model), macs(model, graph)
        budget = ChannelBudget(dense, graph, config, calibration)
        found, widths = ChannelOptions(), dict(before)
        for number in range(config.rounds):
            now = trace(model, example) if number else graph
            found, widths = _plan(work, now, budget, (number + 1) / config.rounds)
            if config.dry_run:
                work.kept = {name: found.kept[name][width] for name, width in widths.items()}
                break
            _apply(work, now, {name: found.kept[name][width] for name, width in widths.items()})
            if recover is not None and number + 1 < config.rounds:
                recover(model)
        if is_pretrained(model) and not config.dry_run:
            from hfcompress.checkpoint.save import record_shapes  # imports transformers

            record_shapes(model)
        after = model
        if config.dry_run:
            after = copy.deepcopy(model)
            cut(after, graph.groups, work.kept)
        return ShrinkReport(
            budget=config.budget,
            requested=getattr(config, config.budget) if config.budget else None,
            parts=tuple(
                SublayerReport(
                    group.name,
                    "channels",
                    before[group.name],
                    tuple(work.kept[group.name].tolist()),
                    _error(found, group.name, widths[group.name]),
                )
                for group in graph.groups
            ),
            dropped_layers=(),
            macs=Amount(costs.total(before), costs.total(_lengths(work))),
            parameters=Amount(size, count_parameters(after)),
            latency=budget.latencies(None if config.dry_run else model),
            dry_run=config.dry_run,
        )


def example_row(model: nn.Module, calibration: Calibration | None) -> Batch:
    """A row to trace a model with: of the calibration, or noise of the size that its config says.

    Raises:
        CalibrationError: no calibration, and a model whose config does not say it.
    """
    if calibration is not None:
        return {key: value[:1] for key, value in calibration.batches[0].items()}
    config = getattr(model, "config", None)
    channels = getattr(config, "num_channels", None)
    if channels is None:
        raise CalibrationError(
            f"how large the images of {type(model).__name__} are is not known; "
            f"pass Calibration(batches) to shrink"
        )
    size = getattr(config, "image_size", None) or _SIDE
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(1, channels, height, width, generator=generator)}


_SIDE = 224


def _plan(
    work: _Work, graph: ChannelGraph, budget: ChannelBudget, progress: float
) -> tuple[ChannelOptions, Widths]:
    """What could go, and how many units each group is to keep."""
    config = work.config
    allowed = allowed_channels(work.model, graph, config)
    found = channel_options(
        work.model, graph, allowed, config, work.calibration, work.judge, work.tell
    )

    def choose(costs: ChannelCosts, limit: float) -> Widths:
        if config.spreads == "optimal":
            errors = {
                name: interpolated(found.errors[name], widths) for name, widths in allowed.items()
            }
            return least_change(costs, errors, limit)
        if config.spreads == "global":
            scores = {name: score.tolist() for name, score in found.scores.items()}
            return ranked_channels(costs, allowed, scores, limit)
        return uniform_channels(costs, allowed, limit)

    return found, budget.fit(work.model, graph, allowed, choose, progress)


def _apply(work: _Work, graph: ChannelGraph, keep: dict[str, Tensor]) -> None:
    """Cut, and make up for what went."""
    stays = cut(work.model, graph.groups, keep)
    work.kept = {name: work.kept[name][keep[name]] for name in work.kept}
    for (name, side), left in stays.items():
        if side == "outputs":
            work.alive[name] = work.alive[name][left] if name in work.alive else left
    if work.config.repairs != "none":
        assert work.calibration is not None
        repair_channels(
            work.model, work.dense, work.graph, work.alive, work.calibration, work.config, work.tell
        )
    if work.config.estimates_norms:
        assert work.calibration is not None
        work.tell("batch norms", 0, 1)
        estimate_batch_norms(work.model, work.calibration)


def _lengths(work: _Work) -> Widths:
    return {name: len(kept) for name, kept in work.kept.items()}


def _error(found: ChannelOptions, name: str, width: int) -> float | None:
    if name not in found.errors:
        return None
    (error,) = interpolated(found.errors[name], [width], power=2.0).values()
    return error


def _check(model: nn.Module, config: ShrinkConfig) -> None:
    if not config.channels:
        raise TargetError(
            f"{type(model).__name__} has no heads and neurons that are known, only channels; "
            f"write channels: true"
        )
    if config.layers is not None:
        raise TargetError(
            f"whole layers are dropped from transformers only, not from {type(model).__name__}; "
            f"write a budget such as macs: 0.5"
        )
