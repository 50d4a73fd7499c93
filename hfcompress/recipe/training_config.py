"""Configs of the steps that train a compressed model: recover, gradual, lottery, progressive."""

from __future__ import annotations

from pydantic import Field, model_validator
from typing_extensions import Self

from hfcompress.distillation.config import AugmentationConfig, DistillationConfig
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.training_config import (
    LotteryConfig,
    ProgressiveConfig,
    PruningTrainingConfig,
)
from hfcompress.recipe.finetune_config import FinetuneConfig


class RecoverConfig(FinetuneConfig):
    """Train a pruned model and keep its zeros; a recipe's ``recover`` step.

    The teacher of ``distillation`` is the dense model of the same trial.

    Raises:
        ConfigError: an unknown field, a value out of range, or a combination without a loss.
    """

    task_loss_weight: float = Field(
        1.0, ge=0, strict=False, description="weight of the loss on the labels"
    )
    dropout: float | None = Field(
        0.0,
        ge=0,
        lt=1,
        strict=False,
        description="probability of all dropout layers; null keeps the model's own. A pruned "
        "model needs all that is left of it",
    )
    freeze_embeddings: bool = Field(
        True, description="leave the embedding tables as they are: faster, and hardly a loss"
    )
    distillation: DistillationConfig | None = Field(
        None, description="losses that tie the model to the dense one"
    )
    augmentation: AugmentationConfig | None = Field(
        None, description="new text made from the training rows, for the dense model to label"
    )

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if self.task_loss_weight == 0 and self.distillation is None:
            raise ValueError("task_loss_weight 0 leaves no loss; add distillation")
        if self.augmentation is not None and self.task_loss_weight:
            raise ValueError("augmented text has no labels; set task_loss_weight to 0")
        return self


class GradualConfig(RecoverConfig):
    """Prune while training; a recipe's ``gradual`` step.

    With ``pruning.method: custom`` the one-shot method in ``oneshot`` prunes at each update.

    Raises:
        ConfigError: as `RecoverConfig`, or a custom method without ``oneshot``.
    """

    pruning: PruningTrainingConfig = Field(description="which masks, by which schedule")
    oneshot: PruningConfig | None = Field(
        None, description="the one-shot method of pruning.method custom; its sparsity is replaced"
    )

    @model_validator(mode="after")
    def _custom_has_a_method(self) -> Self:
        if (self.pruning.method == "custom") != (self.oneshot is not None):
            raise ValueError("pruning.method custom and oneshot go together; give both or none")
        return self


class LotteryStepConfig(LotteryConfig):
    """Search a lottery ticket (1912.05671); a recipe's ``lottery`` step."""

    training: FinetuneConfig = Field(
        default_factory=FinetuneConfig, description="the training that is repeated"
    )


class ProgressiveStepConfig(ProgressiveConfig):
    """Prune, recover, prune again; a recipe's ``progressive`` step.

    ``max_loss`` is judged on training rows held out from recovery, never on the measured rows.
    """

    prune: PruningConfig = Field(
        description="the one-shot method of each round; its sparsity is replaced"
    )
    recover: RecoverConfig = Field(
        default_factory=RecoverConfig, description="the training after each round"
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="share of the training rows that judges the rounds"
    )
