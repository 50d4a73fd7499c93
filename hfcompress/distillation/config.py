"""``DistillationConfig``: which losses tie a student to its teacher."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator
from typing_extensions import Self

from hfcompress.config import Config
from hfcompress.distillation.augment import Augmentation
from hfcompress.distillation.losses import HiddenDistance


class DistillationConfig(Config):
    """The terms of a distillation loss; a weight of 0 leaves a term out.

    Raises:
        ConfigError: an unknown field, a value out of range, or no term at all.
    """

    temperature: float = Field(
        4.0, gt=0, strict=False, description="softens both distributions of the KL divergence"
    )
    soft_weight: float = Field(
        1.0, ge=0, strict=False, description="of the KL divergence from the teacher, times T^2"
    )
    logits_weight: float = Field(
        0.0, ge=0, strict=False, description="of the mean squared difference of the logits"
    )
    hidden_weight: float = Field(
        0.0, ge=0, strict=False,
        description="of the distance of hidden states after each layer, summed over the layers",
    )  # fmt: skip
    hidden_distance: HiddenDistance = Field(
        "normalized_mse", description="distance of hidden states; padding does not count"
    )
    teacher_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 runs the teacher under autocast, faster where the processor can"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.soft_weight or self.logits_weight or self.hidden_weight):
            raise ValueError("no term has a weight above 0; raise one of the weights")
        return self


class AugmentationConfig(Config):
    """Text that is made for a teacher to label; the options of `mixed_texts`.

    Raises:
        ConfigError: an unknown field or method, or a value out of range.
    """

    share: float = Field(
        0.5, ge=0, le=1, strict=False, description="share of the training texts that is new"
    )
    methods: tuple[Augmentation, ...] = Field(
        get_args(Augmentation), strict=False, min_length=1, description="how new text is made"
    )
    rate: float = Field(
        0.2, ge=0, le=1, strict=False, description="share of a text's words that is corrupted"
    )
