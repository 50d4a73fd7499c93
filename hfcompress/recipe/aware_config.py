"""``QuantizationAwareConfig``: train with the arithmetic of the integers to come."""

from __future__ import annotations

from pydantic import Field, model_validator
from typing_extensions import Self

from hfcompress.distillation.config import DistillationConfig
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.recipe.training_config import RecoverConfig


class QuantizationAwareConfig(RecoverConfig):
    """Quantization-aware recovery; a recipe's ``qat`` step, before ``quantize``.

    The model learns from the dense model of the trial while its weights and activations are
    rounded as ``quantization`` says (1712.05877), and ends with weights on the integers' grid.
    Zeros of pruned layers stay.

    Raises:
        ConfigError: as `RecoverConfig`; or a mode that quantizes nothing.
    """

    quantization: QuantizationConfig = Field(
        default_factory=QuantizationConfig,
        description="what the quantize step after it will say: backend, mode, exclude ...",
    )
    epochs: float = Field(1.0, gt=0, strict=False, description="passes over the training rows")
    learning_rate: float = Field(2e-5, gt=0, lt=1, description="peak learning rate of AdamW")
    task_loss_weight: float = Field(
        0.0, ge=0, strict=False, description="weight of the loss on the labels"
    )
    distillation: DistillationConfig | None = Field(
        default_factory=lambda: DistillationConfig(temperature=1.0),
        description="losses that tie the model to the dense one",
    )

    @model_validator(mode="after")
    def _quantizes(self) -> Self:
        if self.quantization.resolved_mode == "none":
            raise ValueError("quantization.mode: none quantizes nothing; choose another mode")
        return self
