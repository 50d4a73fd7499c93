"""``ShrinkStepConfig``: the ``shrink`` step of a recipe."""

from __future__ import annotations

from pydantic import Field, model_validator
from typing_extensions import Self

from hfcompress.recipe.training_config import RecoverConfig
from hfcompress.shrinking.config import ShrinkConfig


class ShrinkStepConfig(ShrinkConfig):
    """Remove heads, neurons and layers, or channels, for a budget; a recipe's ``shrink`` step.

    Raises:
        ConfigError: as `ShrinkConfig`, or ``recover`` without rounds to recover between.
    """

    augmented_rows: int = Field(
        0,
        ge=0,
        description="rows of new text to calibrate on besides, made from the training texts "
        "(without labels): the dense model is surer of rows that it was trained on",
    )
    recover: RecoverConfig | None = Field(
        None, description="the training between rounds; after the last a recover step follows"
    )

    @model_validator(mode="after")
    def _recovers_between_rounds(self) -> Self:
        if self.recover is not None and self.rounds == 1:
            raise ValueError("recover trains between rounds; write rounds: 2 or more, or a step")
        if self.augmented_rows and self.score in ("taylor", "fisher"):
            raise ValueError(f"augmented rows have no labels, which score {self.score} needs")
        return self

    @property
    def choice(self) -> ShrinkConfig:
        """The part that `shrink` takes; rows are drawn by the step."""
        names = ShrinkConfig.model_fields.keys() - {"calibration_rows"}
        return ShrinkConfig(**{name: getattr(self, name) for name in names})
