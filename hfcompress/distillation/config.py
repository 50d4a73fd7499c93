"""Configs of distillation: the losses between a student and its teachers."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from hfcompress.config import Config
from hfcompress.data.config import DataConfig
from hfcompress.distillation.layer_losses import HiddenDistance
from hfcompress.distillation.schedule import ScheduleKind, value_at
from hfcompress.distillation.text_augmentation import Augmentation
from hfcompress.training.hard_loss import Task


class TeacherTermsConfig(Config):
    """The loss terms between student and teacher; a weight of 0 leaves a term out.

    Raises:
        ConfigError: an unknown field or a value out of range.
    """

    temperature: float = Field(
        4.0, gt=0, strict=False, description="divides the logits of both in the KL divergence"
    )
    logits_weight: float = Field(
        0.0, ge=0, strict=False, description="weight of the mean squared difference of the logits"
    )
    similarity_weight: float = Field(
        0.0, ge=0, strict=False,
        description="weight of the mean squared difference of the cosines of a batch's texts; "
        "embedding models",
    )  # fmt: skip
    ranking_weight: float = Field(
        0.0, ge=0, strict=False,
        description="weight of the divergence of each text's distribution over the other texts of "
        "a batch; embedding models",
    )  # fmt: skip
    margin_weight: float = Field(
        0.0, ge=0, strict=False,
        description="weight of the mean squared difference of how far two passages of a query are "
        "apart (margin-MSE); rerankers",
    )  # fmt: skip
    listwise_weight: float = Field(
        0.0, ge=0, strict=False,
        description="weight of the divergence of each query's distribution over its passages of a "
        "batch, the softmax of their scores; rerankers",
    )  # fmt: skip
    hidden_weight: float = Field(
        0.0, ge=0, strict=False,
        description="weight of the distance of hidden states, summed over the mapped layers",
    )  # fmt: skip
    hidden_distance: HiddenDistance = Field(
        "normalized_mse",
        description="distance of hidden states, without padding; feature maps, and different "
        "numbers of patches, are average-pooled to one grid",
    )
    attention_weight: float = Field(
        0.0, ge=0, strict=False,
        description="weight of the distance of attention maps, summed over the mapped layers; set "
        "the student's attention dropout to 0, because it adds noise to the maps",
    )  # fmt: skip
    value_weight: float = Field(
        0.0, ge=0, strict=False,
        description="weight of the divergence of value relations in the last mapped layer (MiniLM)",
    )  # fmt: skip
    relation_heads: int | None = Field(
        None, ge=1,
        description="number of heads of the value relations; by default the student's",
    )  # fmt: skip
    layer_map: dict[int, int] | None = Field(
        None,
        description="student's layer: teacher's layer, from 0; by default evenly spaced, the last "
        "for the last",
    )
    task: Task | None = Field(
        None, description="what the logits mean; by default inferred from the student"
    )
    teacher_precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16 runs the teacher under autocast, faster on hardware with bf16; a "
        "recipe's step on a CPU without runs it in fp32",
    )

    @property
    def compares_passages(self) -> bool:
        """Whether a term compares the passages of a query."""
        return bool(self.margin_weight or self.listwise_weight)

    @property
    def compares_layers(self) -> bool:
        """Whether a term compares layers."""
        return bool(self.hidden_weight or self.attention_weight or self.value_weight)

    def weights(self, soft: float) -> dict[str, float]:
        """Return the weight of each term by its name in the logs, without zeros.

        Args:
            soft: weight of the soft loss.
        """
        weights = {
            "soft_loss": soft,
            "logits_loss": self.logits_weight,
            "similarity_loss": self.similarity_weight,
            "ranking_loss": self.ranking_weight,
            "margin_loss": self.margin_weight,
            "listwise_loss": self.listwise_weight,
            "hidden_loss": self.hidden_weight,
            "attention_loss": self.attention_weight,
            "value_loss": self.value_weight,
        }
        return {name: weight for name, weight in weights.items() if weight}


class DistillationLossConfig(TeacherTermsConfig):
    """The loss terms that a teacher adds to another loss; the options of `TeacherLoss`.

    Raises:
        ConfigError: an unknown field, a value out of range, or no term with a weight.
    """

    soft_weight: float = Field(
        1.0,
        ge=0,
        strict=False,
        description="weight of the KL divergence from the teacher, times T^2",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.weights(self.soft_weight):
            raise ValueError("no term has a weight above 0; raise one of the weights")
        return self


DistillationConfig = DistillationLossConfig
"""The former name, still public."""


class DistillationTrainingConfig(TeacherTermsConfig):
    """The loss on labels and teachers; the options of `DistillationTrainer`.

    The loss is ``alpha * soft + (1 - alpha) * hard`` plus the weighted other terms.

    Raises:
        ConfigError: an unknown field, a value out of range, or an option without effect.
    """

    alpha: float = Field(
        0.5, ge=0, le=1, strict=False,
        description="weight of the soft loss; labels have 1 - alpha and are not needed with 1",
    )  # fmt: skip
    temperature_end: float | None = Field(
        None, gt=0, strict=False, description="temperature of the last update, with a schedule"
    )
    alpha_end: float | None = Field(
        None, ge=0, le=1, strict=False, description="alpha of the last update, with a schedule"
    )
    schedule: ScheduleKind = Field(
        "constant", description="curve of temperature and alpha to temperature_end and alpha_end"
    )
    teacher_weights: tuple[float, ...] | None = Field(
        None, strict=False,
        description="one weight above 0 per teacher; they are divided by their sum",
    )  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> Self:
        ends = [n for n in ("temperature_end", "alpha_end") if getattr(self, n) is not None]
        if ends and self.schedule == "constant":
            raise ValueError(f"{ends[0]} has no effect; set schedule to linear or cosine")
        if not ends and self.schedule != "constant":
            raise ValueError(
                f"schedule {self.schedule} has no effect; set temperature_end or alpha_end"
            )
        if any(weight <= 0 for weight in self.teacher_weights or ()):
            raise ValueError(f"teacher_weights must be above 0, not {self.teacher_weights}")
        return self

    def balance(self, step: int, steps: int) -> tuple[float, float]:
        """Return temperature and alpha of update ``step`` (from 0) of ``steps``."""
        ends = (self.temperature, self.temperature_end), (self.alpha, self.alpha_end)
        temperature, alpha = (value_at(self.schedule, *pair, step, steps) for pair in ends)
        return temperature, alpha


class AugmentationConfig(Config):
    """New text for a teacher to label: made from the training texts, or from further data.

    The first three fields are options of `mixed_texts`.

    Raises:
        ConfigError: an unknown field or method, or a value out of range.
    """

    share: float = Field(
        0.5, ge=0, le=1, strict=False, description="share of the training texts that is new"
    )
    methods: tuple[Augmentation, ...] = Field(
        get_args(Augmentation), strict=False, min_length=1, description="methods that make new text"
    )
    rate: float = Field(
        0.2, ge=0, le=1, strict=False, description="share of a text's words that is corrupted"
    )
    unlabelled: DataConfig | None = Field(
        None,
        description="further texts, used like the training texts; texts of the measured rows are "
        "left out",
    )
