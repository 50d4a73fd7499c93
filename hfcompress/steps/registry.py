"""Each step's config type -> exactly one function that carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from hfcompress.config import Config
from hfcompress.pruning.config import PruningConfig
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import check_quantizable
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
from hfcompress.steps.context import Context, Done
from hfcompress.steps.distill import check_distill, distill
from hfcompress.steps.finetune import finetune
from hfcompress.steps.prune import (
    _check_targets,
    check_training,
    gradual,
    lottery,
    progressive_step,
    prune_step,
    recover,
)
from hfcompress.steps.quantize import aware, check_aware, quantize_step
from hfcompress.steps.shrink import check_shrink, check_vocabulary, shrink_step, vocabulary_step

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
