"""``shrink``: smaller matrices for a budget, by one config."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration, as_calibration
from hfcompress.calibration.hooks import evaluating
from hfcompress.errors import CalibrationError
from hfcompress.measure.size import count_parameters
from hfcompress.models.architectures import family_of
from hfcompress.models.sublayers import known_family
from hfcompress.models.surgery import dense_shapes, note_dense_shapes
from hfcompress.shrinking.channels.prunable import PrunableChannels, check_channels
from hfcompress.shrinking.channels.sides import LAYERS
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.plan import Plan, Prunable, ShrinkContext
from hfcompress.shrinking.report import Amount, ShrinkReport, SublayerReport
from hfcompress.shrinking.snapshot import restored_on_error
from hfcompress.shrinking.sublayers.prunable import PrunableSublayers, removable_sublayers
from hfcompress.tasks.loaders import Loader
from hfcompress.utils import ShowProgress, is_pretrained, no_progress

Recover = Callable[[nn.Module], object]


def shrink(
    model: nn.Module,
    config: ShrinkConfig,
    calibration: Calibration | Loader | None = None,
    *,
    recover: Recover | None = None,
    progress: ShowProgress = no_progress,
    tell: ShowProgress | None = None,
) -> ShrinkReport:
    """Remove heads, neurons and layers, or channels, until a model fits a budget.

    Transformers of a known family lose attention heads, feed-forward neurons and layers; any
    other network with convolutions loses channels, with all that depends on them (residual
    connections, batch norms, depthwise convolutions).

    Parameters keep their identity and get smaller data, so that an optimizer that holds them
    still trains them (see `hfcompress.models.surgery`). What is returned has been run, in eval and
    in train mode: without repair a smaller model gives what the dense one gives with the units
    masked. Channels whose number the network's code fixes are kept and named in the report's notes.
    If anything raises, the model is restored bit for bit.

    Args:
        model: of a known family, or with convolutions; changed in place.
        config: the budget, and how the units to remove are chosen.
        calibration: examples, for all scores but magnitudes without repair: a `Calibration` or any
            loader.
        recover: trains the model after each of several ``rounds`` but the last.
        progress: receives stage, count and total.
        tell: the former name of ``progress``, kept for one release.

    Returns:
        what was removed, and the budget as predicted and as measured.

    Raises:
        TargetError: an unknown family, or a model without removable units.
        ConfigError: a budget below what can be reached, or above the dense model.
        CalibrationError: calibration data that are missing, too few, or without labels where
            the score needs them.
    """
    rows = _calibration(model, config, calibration)
    if has_channels(model):
        check_channels(model, config)
    else:
        removable_sublayers(model, config)
    dense_was = dense_shapes(model)
    with _working_model(model, config) as (work, dense, frozen):
        context = ShrinkContext(config, rows, dense, frozen, tell or progress)
        size = count_parameters(work)
        prunable: Prunable = (
            PrunableChannels(work, context)
            if has_channels(work)
            else PrunableSublayers(work, context)
        )
        plan, kept = _run_rounds(work, prunable, config, recover)
        if not config.dry_run:
            prunable.check(kept)
        if is_pretrained(work) and not config.dry_run:
            from hfcompress.checkpoint.save import record_shapes  # imports transformers

            record_shapes(work)
        elif not config.dry_run:
            note_dense_shapes(work, dense_was)
        return _report(work, prunable, config, size, plan, kept)


def check_shrinkable(model: nn.Module) -> None:
    """Refuse a model without units that `shrink` can remove.

    Raises:
        TargetError: an unknown family without layers that follow each other.
    """
    if not has_channels(model):
        known_family(model)


def has_channels(model: nn.Module) -> bool:
    """Whether `shrink` removes channels: between layers of an architecture of no known family."""
    if family_of(model) is not None:
        return False
    layers = [module for module in model.modules() if isinstance(module, (*LAYERS, nn.Embedding))]
    return len(layers) > 1


@contextmanager
def _working_model(
    model: nn.Module, config: ShrinkConfig
) -> Iterator[tuple[nn.Module, nn.Module, Callable[[nn.Module], nn.Module]]]:
    """The model to change, the dense model, and a function that copies the former.

    A dry run changes at most a copy. Otherwise the model is restored if the block raises, and
    the dense model shares the tensors of the snapshot.
    """
    if config.dry_run:
        with evaluating(model):
            work = model if config.layers is None else copy.deepcopy(model)
            yield work, model, lambda unchanged: unchanged
        return
    with restored_on_error(model) as snapshot, evaluating(model):
        yield model, snapshot.copy_of(model), snapshot.copy_of


def _run_rounds(
    model: nn.Module, prunable: Prunable, config: ShrinkConfig, recover: Recover | None
) -> tuple[Plan, dict[str, Tensor]]:
    """Plan and apply each round.

    Returns:
        the last plan, and for each group the units of the dense model that are left.
    """
    groups = prunable.groups()
    kept = {group.name: torch.arange(group.units) for group in groups}
    plan = Plan.unchanged(groups)
    rounds = config.rounds if config.budget else 0  # layers alone have been dropped already
    for number in range(1, rounds + 1):
        plan = prunable.plan(number / rounds)
        stayed = plan.keep if config.dry_run else prunable.apply(plan)
        kept = {name: kept[name][stayed[name]] for name in kept}
        if recover is not None and number < rounds:
            recover(model)
    return plan, kept


def _report(
    model: nn.Module,
    prunable: Prunable,
    config: ShrinkConfig,
    size: int,
    plan: Plan,
    kept: Mapping[str, Tensor],
) -> ShrinkReport:
    after = prunable.preview(plan) if config.dry_run else model
    widths = {name: len(units) for name, units in kept.items()}
    return ShrinkReport(
        budget=config.budget,
        requested=getattr(config, config.budget) if config.budget else None,
        parts=tuple(
            SublayerReport(
                group.name,
                group.kind,
                group.units,
                tuple(kept[group.name].tolist()),
                plan.error(group.name),
            )
            for group in prunable.groups()
        ),
        dropped_layers=prunable.dropped_layers,
        macs=prunable.macs(after, widths),
        parameters=Amount(size, count_parameters(after)),
        latency=prunable.latencies(None if config.dry_run else model),
        dry_run=config.dry_run,
        notes=prunable.notes,
    )


def _calibration(
    model: nn.Module, config: ShrinkConfig, calibration: Calibration | Loader | None
) -> Calibration | None:
    if calibration is not None:
        return as_calibration(calibration, model).first(config.calibration_rows)
    if config.needs_calibration:
        raise CalibrationError(
            f"score {config.score} with these options needs calibration data; "
            f"pass Calibration(batches) to shrink"
        )
    return None
