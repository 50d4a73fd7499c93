"""Each step's config type -> exactly one function that carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hfcompress.config import Config
from hfcompress.models.architectures import select_modules
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import PruneReport, prune
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.convolutions import is_convolutional
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.quantize import check_quantizable, quantize
from hfcompress.recipe.aware_config import QuantizationAwareConfig
from hfcompress.recipe.distill_config import DistillConfig
from hfcompress.recipe.finetune_config import FinetuneConfig
from hfcompress.recipe.shrink_config import ShrinkStepConfig
from hfcompress.recipe.training_config import (
    GradualConfig,
    LotteryStepConfig,
    ProgressiveStepConfig,
    RecoverConfig,
)
from hfcompress.recipe.vocabulary import check_vocabulary, vocabulary_step
from hfcompress.steps.context import Context
from hfcompress.steps.distill import check_distill, distill
from hfcompress.steps.finetune import finetune
from hfcompress.steps.prune import check_training, gradual, lottery, progressive_step, recover
from hfcompress.steps.quantize import aware, check_aware
from hfcompress.steps.shrink import check_shrink, shrink_step
from hfcompress.vocabulary.config import VocabularyConfig

Done = dict[str, Any]
# Quantizing ends in an engine, every other step in a torch model.
StepFunction = Callable[[PreTrainedModel, Any, Context], tuple[Any, Done]]


@dataclass(frozen=True)
class StepKind:
    """How a step's config is carried out.

    Attributes:
        function: (model, config, context) -> the model and what was done to it; a ``requested``
            sparsity and the ``layers`` touched are known to the rows.
        compresses: the model before the first such step is the dense one that others are
            compared with.
        trains: it runs long; its result is kept by content hash.
        calibrates: it may take minutes; its result is kept where it did and a later step trains.
        needs_rows: it reads training rows.
        check: refuses a config that does not fit the model, before anything runs.
    """

    function: StepFunction
    compresses: bool = False
    trains: bool = False
    calibrates: bool = False
    needs_rows: Callable[[Any], bool] = lambda config: False
    check: Callable[[PreTrainedModel, Any], None] = lambda model, config: None


def prune_step(
    model: PreTrainedModel, config: PruningConfig, context: Context
) -> tuple[PreTrainedModel, Done]:
    """Prune in place."""
    context.progress.stage(f"pruning: {config.method}, {config.wanted:.0%}")
    return model, prune_by(model, config, context).plain()


def prune_by(model: nn.Module, config: PruningConfig, context: Context) -> PruneReport:
    """Prune in place, with training rows drawn by the config's seed where the method calibrates."""
    if not config.needs_calibration:
        return prune(model, config)
    calibration = context.calibration(config.calibration_rows, config.seed, config.augmented_rows)
    return prune(model, config.changed(calibration_rows=None, augmented_rows=0), calibration)


def quantize_step(
    model: PreTrainedModel, config: QuantizationConfig, context: Context
) -> tuple[QuantizedModel, Done]:
    """Quantize for an engine, with training rows where the mode calibrates."""
    context.progress.stage(f"quantizing: {config.backend}, {config.mode}")
    # Networks of convolutions are quantized statically by default.
    wanted = config.needs_calibration or (
        config.mode == "auto" and is_convolutional(model) and context.train is not None
    )
    calibration = context.calibration(config.calibration_rows, config.seed) if wanted else None
    quantized = quantize(model, config, calibration)
    context.progress.note(quantized.coverage.sentence)
    if quantized.mixed is not None:
        context.progress.note(quantized.mixed.sentence)
    for note in quantized.notes:
        context.progress.note(note)
    done = quantized.plain()
    done.pop("modules")
    return quantized, done


def _check_targets(model: PreTrainedModel, config: PruningConfig) -> None:
    select_modules(model, config.targets, config.exclude)


def _always(config: Config) -> bool:
    return True


TRAINING_STEPS: dict[type[Config], StepFunction] = {
    GradualConfig: gradual,
    LotteryStepConfig: lottery,
    ProgressiveStepConfig: progressive_step,
}
STEPS: dict[type[Config], StepKind] = {
    FinetuneConfig: StepKind(finetune, trains=True, needs_rows=_always, check=check_training),
    PruningConfig: StepKind(
        prune_step,
        compresses=True,
        calibrates=True,
        needs_rows=lambda config: config.needs_calibration,
        check=_check_targets,
    ),
    ShrinkStepConfig: StepKind(
        shrink_step,
        compresses=True,
        calibrates=True,
        needs_rows=lambda config: config.needs_calibration or config.recover is not None,
        check=check_shrink,
    ),
    DistillConfig: StepKind(
        distill, compresses=True, trains=True, needs_rows=_always, check=check_distill
    ),
    VocabularyConfig: StepKind(
        vocabulary_step, compresses=True, needs_rows=_always, check=check_vocabulary
    ),
    QuantizationAwareConfig: StepKind(
        aware, compresses=True, trains=True, needs_rows=_always, check=check_aware
    ),
    QuantizationConfig: StepKind(
        quantize_step,
        compresses=True,
        needs_rows=lambda config: config.needs_calibration,
        check=check_quantizable,
    ),
    RecoverConfig: StepKind(recover, trains=True, needs_rows=_always, check=check_training),
    **{
        config: StepKind(
            function, compresses=True, trains=True, needs_rows=_always, check=check_training
        )
        for config, function in TRAINING_STEPS.items()
    },
}


def kind_of(config: Config) -> StepKind:
    """The way to carry out a step's config."""
    return STEPS[type(config)]
