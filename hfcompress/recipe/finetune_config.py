"""``FinetuneConfig``: train a model on its task, before or after it is compressed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hfcompress.augment_images import ImageAugmentation
from hfcompress.config import Config


class FinetuneConfig(Config):
    """Fine-tuning with `transformers.Trainer`; a recipe's ``finetune`` step.

    Raises:
        ConfigError: an unknown field, a wrong type or a value out of range.
    """

    epochs: float = Field(3.0, gt=0, description="passes over the training rows")
    max_steps: int | None = Field(None, ge=1, description="stop after so many updates instead")
    batch_size: int = Field(32, ge=1, description="rows in an update")
    learning_rate: float = Field(5e-5, gt=0, lt=1, description="peak learning rate of AdamW")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how the learning rate falls after the warm-up"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the updates spent warming up")
    weight_decay: float = Field(
        0.0, ge=0, lt=1, description="decoupled weight decay of AdamW; biases and norms have none"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label spread out")
    track: Literal["tensorboard", "trackio"] | None = Field(
        None, description="also log the training there (extra: track)"
    )
    bf16: bool = Field(False, description="bfloat16 autocast: faster where the CPU or GPU has it")
    image_augmentation: ImageAugmentation | None = Field(
        None, description="random views of the training images"
    )
    channels_last: bool = Field(
        False, description="the memory format in which convolutions are fastest"
    )
