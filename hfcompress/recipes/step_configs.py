"""What a step is called in a recipe, and the config class that checks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hfcompress.config import Config, StepConfig, nearest, shown
from hfcompress.data.images import ImageAugmentation
from hfcompress.distillation.config import (
    AugmentationConfig,
    DistillationConfig,
    DistillationTrainingConfig,
)
from hfcompress.distillation.student import StudentConfig
from hfcompress.distillation.text_student import TextStudentConfig
from hfcompress.errors import ConfigError
from hfcompress.models.loading import ModelConfig
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.training_config import (
    LotteryConfig,
    ProgressiveConfig,
    PruningTrainingConfig,
)
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.vocabulary.tokenizer import VocabularyConfig
from hfcompress.training.tracking import Tracker
from hfcompress.utils import Fields


class FinetuneConfig(StepConfig):
    """Fine-tuning with `transformers.Trainer`; a recipe's ``finetune`` step.

    Raises:
        ConfigError: an unknown field, a wrong type or a value out of range.
    """

    step_name = "finetune"
    trains = True

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
    track: Tracker | None = Field(
        None, description="also log the training there, into the run's folder (extra: track)"
    )
    bf16: bool = Field(
        False,
        description="bfloat16 autocast, faster where the CPU or GPU has it; a CPU without trains "
        "in fp32, and says so",
    )
    image_augmentation: ImageAugmentation | None = Field(
        None, description="random views of the training images"
    )
    channels_last: bool = Field(
        False, description="the memory format in which convolutions are fastest"
    )


class DistillConfig(FinetuneConfig):
    """Train a student on a teacher's outputs; a recipe's ``distill`` step.

    The teacher is the dense model of the trial. The student is one of ``student``,
    ``text_student`` and ``model``; without any of them it is what the steps before left.

    Raises:
        ConfigError: an unknown field, a value out of range, or fields that do not go together.
    """

    step_name = "distill"
    compresses = True

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
        description="let the teacher label all rows before training and keep its outputs: "
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

    @property
    def replaces_model(self) -> bool:
        """Whether the student is another model than the steps before left."""
        return (self.student or self.text_student or self.model) is not None


class RecoverConfig(FinetuneConfig):
    """Train a pruned model and keep its zeros; a recipe's ``recover`` step.

    The teacher of ``distillation`` is the dense model of the same trial.

    Raises:
        ConfigError: an unknown field, a value out of range, or a combination without a loss.
    """

    step_name = "recover"

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

    step_name = "gradual"
    compresses = True

    pruning: PruningTrainingConfig = Field(description="which masks, by which schedule")
    oneshot: PruningConfig | None = Field(
        None, description="the one-shot method of pruning.method custom; its sparsity is replaced"
    )

    @model_validator(mode="after")
    def _custom_has_a_method(self) -> Self:
        if (self.pruning.method == "custom") != (self.oneshot is not None):
            raise ValueError("pruning.method custom and oneshot go together; give both or none")
        return self


class LotteryStepConfig(LotteryConfig, StepConfig):
    """Search a lottery ticket (1912.05671); a recipe's ``lottery`` step."""

    step_name = "lottery"
    compresses = True
    trains = True

    training: FinetuneConfig = Field(
        default_factory=FinetuneConfig, description="the training that is repeated"
    )


class ProgressiveStepConfig(ProgressiveConfig, StepConfig):
    """Prune, recover, prune again; a recipe's ``progressive`` step.

    ``max_loss`` is judged on training rows held out from recovery, never on the measured rows.
    """

    step_name = "progressive"
    compresses = True
    trains = True

    prune: PruningConfig = Field(
        description="the one-shot method of each round; its sparsity is replaced"
    )
    recover: RecoverConfig = Field(
        default_factory=RecoverConfig, description="the training after each round"
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="share of the training rows that judges the rounds"
    )

    def held_out_rows(self, rows: int) -> int:
        """How many of the training rows judge the rounds."""
        return max(1, round(self.held_out * rows))


class QuantizationAwareConfig(RecoverConfig):
    """Quantization-aware recovery; a recipe's ``qat`` step, before ``quantize``.

    The model learns from the dense model of the trial while its weights and activations are
    rounded as ``quantization`` says (1712.05877), and ends with weights on the integers' grid.
    Zeros of pruned layers stay.

    Raises:
        ConfigError: as `RecoverConfig`; or a mode that quantizes nothing.
    """

    step_name = "qat"
    compresses = True

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


class ShrinkStepConfig(ShrinkConfig, StepConfig):
    """Remove heads, neurons and layers, or channels, for a budget; a recipe's ``shrink`` step.

    Raises:
        ConfigError: as `ShrinkConfig`, or ``recover`` without rounds to recover between.
    """

    step_name = "shrink"
    compresses = True
    calibrates = True
    shrinks = True

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
    def needs_rows(self) -> bool:
        """Whether the step reads training rows."""
        return self.needs_calibration or self.recover is not None

    @property
    def choice(self) -> ShrinkConfig:
        """The part that `shrink` takes; rows are drawn by the step."""
        names = ShrinkConfig.model_fields.keys() - {"calibration_rows"}
        return ShrinkConfig(**{name: getattr(self, name) for name in names})


# steps/registry.py maps each class to the function that carries it out.
STEP_CONFIGS: dict[str, type[StepConfig]] = {
    config.step_name: config
    for config in (
        FinetuneConfig, PruningConfig, QuantizationAwareConfig, QuantizationConfig,
        ShrinkStepConfig, RecoverConfig, GradualConfig, LotteryStepConfig,
        ProgressiveStepConfig, DistillConfig, VocabularyConfig,
    )
}  # fmt: skip
"""What each step is called in a recipe -> the config class that checks its fields."""


@dataclass(frozen=True)
class Step:
    """One step: its name in YAML and its checked config."""

    name: str
    config: StepConfig

    def to_dict(self) -> Fields:
        """The step as a recipe writes it, with every field."""
        return {self.name: self.config.to_dict()}


def parse_steps(steps: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Check a list of ``{name: fields}`` mappings.

    Raises:
        ConfigError: an unknown step or field, with its place in the list.
    """
    check_names(steps)
    parsed = []
    for index, item in enumerate(steps):
        ((name, fields),) = item.items()
        config = STEP_CONFIGS[name].from_dict(
            {} if fields is None else fields, f"steps[{index}].{name}"
        )
        parsed.append(Step(name, config))
        if isinstance(config, QuantizationConfig) and index < len(steps) - 1:
            raise ConfigError(
                f"steps[{index}].quantize leaves no torch model for the steps after it; "
                f"write it last"
            )
    return tuple(parsed)


def check_names(steps: Sequence[object]) -> None:
    """Check that steps are a list of ``{name: fields}`` mappings with known names.

    Raises:
        ConfigError: an unknown step, with its place in the list.
    """
    for index, item in enumerate(steps):
        if not isinstance(item, Mapping) or len(item) != 1:
            raise ConfigError(
                f"steps[{index}] must be one step and its fields, such as "
                f"'prune: {{sparsity: 0.5}}', not {shown(item)}"
            )
        name = next(iter(item))
        if name not in STEP_CONFIGS:
            hint = nearest(str(name), list(STEP_CONFIGS))
            raise ConfigError(f"steps[{index}]: there is no step {name!r}{hint}")


def step_as_plain(step: object, place: int) -> Fields:
    """A step as a recipe writes it.

    Raises:
        ConfigError: a config of something else than a step.
    """
    if isinstance(step, Mapping):
        return dict(step)
    kind = type(step)
    names = [name for name, config in STEP_CONFIGS.items() if config is kind]
    # A config that only Python uses (ShrinkConfig) names the step whose config extends it.
    names = names or [name for name, config in STEP_CONFIGS.items() if issubclass(config, kind)]
    if not isinstance(step, Config) or not names or kind is Config:
        hint = nearest(kind.__name__, [config.__name__ for config in STEP_CONFIGS.values()])
        raise ConfigError(f"steps[{place}] is a {kind.__name__}, not a step{hint}")
    return {names[0]: {field: getattr(step, field) for field in step.model_fields_set}}
