"""``sensitivity``: prune one layer at a time and measure the loss of quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hfcompress.calibration.batches import Calibration
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.inputs import unknown_inputs
from hfcompress.pruning.prune import prune
from hfcompress.pruning.targets import literal, select_targets
from hfcompress.training.loops import as_number

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
"""What is tried on each layer by default."""


@dataclass(frozen=True)
class SensitivityRow:
    """One layer pruned alone to one sparsity.

    Attributes:
        layer: the module's name.
        requested, actual: the layer's sparsity.
        value: what ``evaluate`` gave.
        dense: what it gave before anything was pruned.
    """

    layer: str
    requested: float
    actual: float
    value: float
    dense: float

    @property
    def drop(self) -> float:
        """How much was lost against the dense model."""
        return self.dense - self.value


def sensitivity(
    model: nn.Module,
    config: PruningConfig,
    evaluate: Callable[[nn.Module], float],
    sparsities: Sequence[float] = SPARSITIES,
    calibration: Calibration | None = None,
) -> list[SensitivityRow]:
    """Prune each target alone to each sparsity, measure, and put its weights back.

    Args:
        model: as it was before, when this returns or raises.
        config: method and targets; its own sparsity is not used.
        evaluate: the model's quality, higher is better.
        sparsities: what to try on each layer.
        calibration: for methods that need it.

    Returns:
        a row for each layer and sparsity, layers in model order; none for layers whose inputs
        the method needs and calibration cannot see.

    Raises:
        TargetError, ModelError, CalibrationError: as `prune`.
        ConfigError: ``evaluate`` returns no finite number.
    """
    modules = select_targets(model, config.targets, config.exclude)
    skipped = unknown_inputs(model, modules, config, calibration)
    dense = as_number(evaluate(model), "evaluate")
    rows = []
    for name, module in modules.items():
        if name in skipped:
            continue
        before = {key: value.clone() for key, value in module.state_dict().items()}
        for sparsity in sparsities:
            try:
                alone = config.replace(sparsity=sparsity, targets=(literal(name),), exclude=None)
                report = prune(model, alone, calibration)
                value = as_number(evaluate(model), "evaluate")
            finally:
                with torch.no_grad():
                    module.load_state_dict(before)
            rows.append(SensitivityRow(name, sparsity, report.actual, value, dense))
    return rows
