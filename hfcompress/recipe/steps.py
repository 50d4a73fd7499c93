"""Each step's config type -> exactly one function that carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from hfcompress.architectures import select_modules
from hfcompress.config import Config
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.unstructured import prune
from hfcompress.recipe.context import Context
from hfcompress.recipe.finetune import finetune
from hfcompress.recipe.finetune_config import FinetuneConfig

Done = dict[str, Any]
StepFunction = Callable[[PreTrainedModel, Any, Context], tuple[PreTrainedModel, Done]]


@dataclass(frozen=True)
class StepKind:
    """How a step's config is carried out.

    Attributes:
        function: (model, config, context) -> the model and what was done to it; a ``requested``
            sparsity and the ``layers`` touched are known to the rows.
        compresses: the model before the first such step is the dense one that others are
            compared with.
        trains: it runs long; its result is kept by content hash.
        needs_rows: it reads training rows.
        check: refuses a config that does not fit the model, before anything runs.
    """

    function: StepFunction
    compresses: bool = False
    trains: bool = False
    needs_rows: Callable[[Any], bool] = lambda config: False
    check: Callable[[PreTrainedModel, Any], None] = lambda model, config: None


def prune_step(
    model: PreTrainedModel, config: PruningConfig, context: Context
) -> tuple[PreTrainedModel, Done]:
    """Prune in place."""
    context.progress.stage(f"pruning: {config.method}, {config.scope}, {config.sparsity:.0%}")
    return model, prune(model, config).plain()


def _check_targets(model: PreTrainedModel, config: PruningConfig) -> None:
    select_modules(model, config.targets, config.exclude)


STEPS: dict[type[Config], StepKind] = {
    FinetuneConfig: StepKind(finetune, trains=True, needs_rows=lambda config: True),
    PruningConfig: StepKind(prune_step, compresses=True, check=_check_targets),
}


def kind_of(config: Config) -> StepKind:
    """The way to carry out a step's config."""
    return STEPS[type(config)]
