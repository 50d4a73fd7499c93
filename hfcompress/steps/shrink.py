"""The ``shrink`` step: a thin layer over `hfcompress.pruning.structured`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hfcompress.recipe.shrink_config import ShrinkStepConfig
from hfcompress.shrinking.shrink import check_shrinkable, shrink
from hfcompress.steps.context import Context
from hfcompress.steps.prune import check_training, recover


def shrink_step(
    model: PreTrainedModel, config: ShrinkStepConfig, context: Context
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Shrink in place.

    Raises:
        TargetError: a family that is not known.
        ConfigError: a budget that cannot be met.
        DataError: no training rows, where the config calibrates or recovers.
    """
    rows = None
    if config.needs_calibration or config.budget in ("latency", "speedup"):
        rows = context.calibration(config.calibration_rows, config.seed, config.augmented_rows)
    training = config.recover

    def retrain(network: nn.Module) -> None:
        if training is not None:
            inner = replace(context, workdir=None, shrunk=True)
            recover(network, training, inner)  # type: ignore[arg-type]

    stages: set[str] = set()

    def tell(doing: str, done: int, whole: int) -> None:
        if doing not in stages:
            stages.add(doing)
            context.progress.stage(f"shrinking: {doing}")
        context.progress.work(done, whole)

    report = shrink(model, config.choice, rows, recover=retrain if training else None, tell=tell)
    return model, report.plain()


def check_shrink(model: PreTrainedModel, config: ShrinkStepConfig) -> None:
    """Refuse a model in which nothing is known that could go, before anything runs.

    Raises:
        TargetError: such a family.
    """
    check_shrinkable(model)
    if config.recover is not None:
        check_training(model, config.recover)
