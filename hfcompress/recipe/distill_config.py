"""``DistillConfig``: train a smaller model to follow the dense one."""

from __future__ import annotations

from pydantic import Field, model_validator
from typing_extensions import Self

from hfcompress.distillation.config import AugmentationConfig, DistillationTrainingConfig
from hfcompress.distillation.student import StudentConfig
from hfcompress.distillation.text_student import TextStudentConfig
from hfcompress.models.loading import ModelConfig
from hfcompress.recipe.finetune_config import FinetuneConfig


class DistillConfig(FinetuneConfig):
    """Train a student on a teacher's outputs; a recipe's ``distill`` step.

    The teacher is the dense model of the trial. The student is one of ``student``,
    ``text_student`` and ``model``; without any of them it is what the steps before left.

    Raises:
        ConfigError: an unknown field, a value out of range, or fields that do not go together.
    """

    student: StudentConfig | None = Field(
        None, description="made from the teacher's weights, with these sizes"
    )
    text_student: TextStudentConfig | None = Field(
        None, description="a CNN or an LSTM that shares the teacher's words"
    )
    model: ModelConfig | None = Field(
        None, description="any model of yours whose tokenizer is the teacher's"
    )
    distillation: DistillationTrainingConfig = Field(
        default_factory=DistillationTrainingConfig, description="what ties it to the teacher"
    )
    augmentation: AugmentationConfig | None = Field(
        None, description="new text made from the training rows, for the teacher to label"
    )
    cache: bool = Field(
        False,
        description="let the teacher label all rows before training and keep what it said: "
        "faster where rows come again, in epochs or in other trials",
    )
    dropout: float | None = Field(
        0.0, ge=0, lt=1, strict=False,
        description="probability of all dropout layers; null keeps the model's own",
    )  # fmt: skip
    freeze_embeddings: bool = Field(
        True, description="leave the embedding tables as they are: faster, and hardly a loss"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kinds = ("student", "text_student", "model")
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are two students; keep one of them")
        if self.augmentation is not None and self.distillation.alpha != 1:
            raise ValueError("augmented text has no labels; set distillation.alpha to 1")
        return self
