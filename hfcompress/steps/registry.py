"""Each step's config class -> the function that carries it out, and the check before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hfcompress.config import Config, StepConfig
from hfcompress.errors import CalibrationError
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.targets import select_targets
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.recipes.step_configs import (
    DistillConfig,
    FinetuneConfig,
    GradualConfig,
    LotteryStepConfig,
    ProgressiveStepConfig,
    QuantizationAwareConfig,
    RecoverConfig,
    ShrinkStepConfig,
)
from hfcompress.shrinking.vocabulary.tokenizer import VocabularyConfig
from hfcompress.steps.context import Context, ModelState, StepReport
from hfcompress.steps.distill import check_distill, distill_step
from hfcompress.steps.finetune import finetune_step
from hfcompress.steps.prune import (
    gradual_step,
    lottery_step,
    progressive_step,
    prune_step,
    recover_step,
)
from hfcompress.steps.quantize import (
    calibrates,
    check_qat,
    check_quantize,
    qat_step,
    quantize_step,
    rows_asked,
)
from hfcompress.steps.shrink import check_shrink, check_vocabulary, shrink_step, vocabulary_step
from hfcompress.steps.training import check_training


@dataclass(frozen=True)
class Carrier:
    """How a step is carried out.

    Attributes:
        run: (state, config, context) -> the state that the step leaves, and what it did.
        check: refuses a config that does not fit the model, before anything runs.
    """

    run: Callable[[ModelState, Any, Context], tuple[ModelState, StepReport]]
    check: Callable[[PreTrainedModel, Any], None]


def _check_targets(model: nn.Module, config: PruningConfig) -> None:
    select_targets(model, config.targets, config.exclude)


STEPS: dict[type[StepConfig], Carrier] = {
    FinetuneConfig: Carrier(finetune_step, check_training),
    PruningConfig: Carrier(prune_step, _check_targets),
    ShrinkStepConfig: Carrier(shrink_step, check_shrink),
    DistillConfig: Carrier(distill_step, check_distill),
    VocabularyConfig: Carrier(vocabulary_step, check_vocabulary),
    QuantizationAwareConfig: Carrier(qat_step, check_qat),
    QuantizationConfig: Carrier(quantize_step, check_quantize),
    RecoverConfig: Carrier(recover_step, check_training),
    GradualConfig: Carrier(gradual_step, check_training),
    LotteryStepConfig: Carrier(lottery_step, check_training),
    ProgressiveStepConfig: Carrier(progressive_step, check_training),
}


def run_step(
    state: ModelState, config: StepConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Carry a step out on a model, which may be changed in place.

    Raises:
        HfcompressError: as the step.
    """
    return STEPS[type(config)].run(state, config, context)


def check_step(model: PreTrainedModel, config: StepConfig) -> None:
    """Refuse a step that does not fit the model, before anything runs.

    Raises:
        BadInputError: as the step's check.
    """
    STEPS[type(config)].check(model, config)


def check_rows(model: PreTrainedModel, config: StepConfig, rows: int) -> None:
    """Refuse a step that calibrates on more rows than there are, before anything runs.

    Args:
        model: the dense model.
        config: of the step.
        rows: how many the training side has.

    Raises:
        CalibrationError: the step asks for more.
    """
    if isinstance(config, ProgressiveStepConfig):
        rows -= config.held_out_rows(rows)
    for field, asked in _calibration_rows(model, config):
        if asked > rows:
            raise CalibrationError(
                f"{config.step_name}.{field} is {asked} and the training side has {rows} rows; "
                f"lower it or give more data"
            )


def _calibration_rows(model: PreTrainedModel, config: Config) -> Iterator[tuple[str, int]]:
    """Field and number of the rows that a config, and those inside it, calibrate on."""
    asked: int | None = getattr(config, "calibration_rows", None)
    if isinstance(config, QuantizationConfig):
        asked = rows_asked(config) if calibrates(model, config) else None
    elif not getattr(config, "needs_calibration", True):
        timed = isinstance(config, ShrinkStepConfig) and config.budget in ("latency", "speedup")
        asked = asked if timed else None
    if asked is not None:
        yield "calibration_rows", asked
    # Quantization-aware training takes its scales from the rows that it trains on.
    for name in type(config).model_fields if type(config) is not QuantizationAwareConfig else ():
        part = getattr(config, name)
        if isinstance(part, Config):
            yield from (
                (f"{name}.{field}", count) for field, count in _calibration_rows(model, part)
            )
