"""What pruning in training can be told: one config class per way to do it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from hfcompress.config import Config
from hfcompress.errors import ConfigError
from hfcompress.pruning.patterns import Pattern
from hfcompress.pruning.schedule import ScheduleKind, SparsitySchedule

TrainingMethod = Literal["magnitude", "movement", "soft_movement", "keep_zeros", "custom"]

_SOFT = ("threshold", "regularization", "score_learning_rate")
_TIMES = ("schedule", "start", "end", "warmup", "cooldown", "frequency", "initial_sparsity")
_UNUSED_BY_METHOD: dict[str, tuple[str, ...]] = {
    "magnitude": (*_SOFT, "may_be_dense"),
    "movement": (*_SOFT, "may_be_dense"),
    "soft_movement": ("scope", "initial_sparsity", "may_be_dense"),
    "keep_zeros": ("scope", *_SOFT, *_TIMES),
    "custom": ("scope", *_SOFT, "may_be_dense"),
}
_UNUSED_BY_SCHEDULE: dict[str, tuple[str, ...]] = {
    "cubic": (),
    "linear": (),
    "constant": ("initial_sparsity",),
    "one_shot": ("initial_sparsity", "end", "cooldown", "frequency"),
}


class PruningTrainingConfig(Config):
    """Masks that are chosen, and held, while a model trains; the argument of `PruningCallback`.

    ======================  ==================================================================
    method                  a weight is kept
    ======================  ==================================================================
    ``magnitude``           for its absolute value (Zhu and Gupta, 1710.01878)
    ``movement``            for moving away from zero (2005.07683); it may come back
    ``soft_movement``       as above, against a threshold: the sparsity follows from
                            ``regularization`` (more is sparser) and differs by layer
    ``keep_zeros``          unless it is zero when training starts: recovers a pruned model
    ``custom``              unless the function given to the callback zeroes it, called at each
                            update: gradual pruning by any one-shot method
    ======================  ==================================================================

    Raises:
        ConfigError: a field that does not fit, or a combination that would have no effect.
    """

    method: TrainingMethod = Field("magnitude", description="what makes a weight important")
    sparsity: float | None = Field(
        None,
        gt=0,
        lt=1,
        strict=False,
        description="share of the target weights that is zero in the end, in (0, 1); needed by "
        "magnitude, movement and custom unless an N:M pattern gives it",
    )
    pattern: str = Field(
        "unstructured",
        description="unstructured; N:M such as 2:4: at most N weights are kept of each M "
        "neighbours along the inputs, and the schedule lowers N; or RxC such as 16x1: whole blocks",
    )
    scope: Literal["layer", "global"] = Field(
        "layer", description="weights compete within their layer, or all together"
    )
    schedule: ScheduleKind = Field("cubic", description="how sparsity grows between start and end")
    initial_sparsity: float = Field(
        0.0, ge=0, lt=1, strict=False, description="sparsity of the first update (cubic, linear)"
    )
    warmup: float = Field(
        0.1, ge=0, le=1, strict=False, description="share of training before the first update"
    )
    cooldown: float = Field(
        0.3, ge=0, le=1, strict=False, description="share of training after the last update"
    )
    start: int | None = Field(
        None, ge=0, description="optimizer step of the first update; default: by warmup"
    )
    end: int | None = Field(
        None, ge=0, description="optimizer step of the last update; default: by cooldown"
    )
    frequency: int = Field(10, ge=1, description="optimizer steps between two updates")
    threshold: float = Field(
        0.1, gt=0, lt=0.5, strict=False,
        description="a weight is kept while the sigmoid of its score is above this (soft_movement)",
    )  # fmt: skip
    regularization: float = Field(
        1.0, ge=0, strict=False,
        description="pull of all scores towards zero weights (soft_movement)",
    )  # fmt: skip
    score_learning_rate: float = Field(
        0.02, gt=0, strict=False, description="step size of the scores (soft_movement)"
    )
    may_be_dense: bool = Field(
        False, description="keep_zeros: train a model that has no zeros, too (a shrunk one)"
    )
    targets: tuple[str, ...] | None = Field(
        None, strict=False, min_length=1,
        description="patterns of the modules to prune; default: all but embeddings and head",
    )  # fmt: skip
    exclude: tuple[str, ...] | None = Field(
        None, strict=False, description="patterns of modules to leave alone"
    )

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, text: str) -> str:
        Pattern.parse(text)
        return text

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_sparsity()
        unused = self._unused_fields()
        if unused:
            raise ValueError(f"{unused[0]} has no effect with {self._mode}; leave it out")
        if self.schedule != "one_shot" and self.warmup + self.cooldown > 1:
            raise ValueError("warmup and cooldown together must not exceed 1")
        return self

    @property
    def _mode(self) -> str:
        return f"method {self.method!r} and schedule {self.schedule!r}"

    @property
    def shape(self) -> Pattern:
        """The pattern, parsed."""
        return Pattern.parse(self.pattern)

    @property
    def final_sparsity(self) -> float:
        """Sparsity of the targets in the end; 1 stands for the full pull of soft movement."""
        if self.shape.group:
            return 1 - self.shape.keep / self.shape.group
        return 1.0 if self.sparsity is None else self.sparsity

    def sparsity_schedule(self, total_steps: int) -> SparsitySchedule:
        """The schedule for a training of ``total_steps`` optimizer steps.

        Raises:
            ConfigError: a schedule that ends after training does.
        """
        if self.method == "keep_zeros":
            return SparsitySchedule("one_shot", 1.0)
        start = round(self.warmup * total_steps) if self.start is None else self.start
        end = round((1 - self.cooldown) * total_steps) if self.end is None else self.end
        if self.schedule == "one_shot":
            end = start
        schedule = SparsitySchedule(
            self.schedule, self.final_sparsity, self.initial_sparsity, start, end, self.frequency
        )
        if schedule.last_update > total_steps:
            raise ConfigError(
                f"the pruning schedule ends at step {schedule.last_update}, after training does "
                f"(step {total_steps}); lower 'end', or train longer"
            )
        return schedule

    def _check_sparsity(self) -> None:
        chosen = self.method in ("magnitude", "movement", "custom")
        ranked = self.method in ("magnitude", "movement")
        if not ranked and not self.shape.unstructured:
            raise ValueError(f"pattern has no effect with {self._mode}; leave it out")
        if not chosen and self.sparsity is not None:
            source = "regularization" if self.method == "soft_movement" else "the model's zeros"
            raise ValueError(f"sparsity follows from {source} with {self.method!r}; leave it out")
        if chosen and not self.shape.group and self.sparsity is None:
            raise ValueError(f"method {self.method!r} needs the field 'sparsity'")
        if self.shape.group and self.scope == "global":
            raise ValueError("scope has no effect with an N:M pattern; leave it out")
        if self.shape.group and self.sparsity not in (None, self.final_sparsity):
            raise ValueError(
                f"pattern {self.pattern!r} has sparsity {self.final_sparsity:g}, "
                f"not {self.sparsity:g}; leave sparsity out"
            )
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                f"initial_sparsity {self.initial_sparsity:g} exceeds the final sparsity "
                f"{self.final_sparsity:g}"
            )

    def _unused_fields(self) -> list[str]:
        """Fields that were set and that would change nothing."""
        unused = set(_UNUSED_BY_METHOD[self.method])
        if self.method != "keep_zeros":
            unused.update(_UNUSED_BY_SCHEDULE[self.schedule])
        # A value equal to the default is harmless: `plain` and recipes spell every field out.
        return [
            name
            for name, field in type(self).model_fields.items()
            if name in unused and getattr(self, name) != field.default
        ]


class LotteryConfig(Config):
    """Iterative magnitude pruning with rewinding; the argument of `find_ticket`.

    Raises:
        ConfigError: an unknown field, a wrong type or a value out of range.
    """

    sparsity: float = Field(
        gt=0, lt=1, strict=False, description="share of the target weights that is zero in the end"
    )
    rounds: int = Field(
        5, ge=1, description="prunings; each drops the same share of the weights that are left"
    )
    rewind_step: int = Field(
        0, ge=0, description="weights go back to what they were after this many optimizer steps"
    )
    scope: Literal["layer", "global"] = Field(
        "global", description="weights compete within their layer, or all together"
    )
    targets: tuple[str, ...] | None = Field(
        None, strict=False, min_length=1, description="patterns of the modules to prune"
    )
    exclude: tuple[str, ...] | None = Field(
        None, strict=False, description="patterns of modules to leave alone"
    )

    def sparsities(self) -> tuple[float, ...]:
        """Sparsity after each round: what is left shrinks by the same factor each time."""
        kept = 1 - self.sparsity
        shares = [1 - kept ** (done / self.rounds) for done in range(1, self.rounds)]
        return (*shares, self.sparsity)


class ProgressiveConfig(Config):
    """Prune, recover, prune again; the argument of `progressive`.

    Raises:
        ConfigError: an unknown field, a wrong type or a value out of range.
    """

    sparsity: float = Field(gt=0, lt=1, strict=False, description="where to go")
    initial_sparsity: float = Field(
        0.5, ge=0, lt=1, strict=False, description="sparsity of the first round"
    )
    rounds: int = Field(4, ge=1, description="how often to prune and recover")
    spacing: Literal["cubic", "linear"] = Field(
        "cubic", description="how the rounds' sparsities lie between the first and the last"
    )
    max_loss: float | None = Field(
        None,
        ge=0,
        strict=False,
        description="stop before the metric falls by more than this below the dense model's",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.initial_sparsity > self.sparsity:
            raise ValueError(
                f"initial_sparsity {self.initial_sparsity:g} exceeds sparsity {self.sparsity:g}"
            )
        return self

    def sparsities(self) -> tuple[float, ...]:
        """Sparsity of each round."""
        if self.rounds == 1:
            return (self.sparsity,)
        schedule = SparsitySchedule(
            self.spacing, self.sparsity, self.initial_sparsity, 0, self.rounds - 1
        )
        return tuple(schedule.sparsity(done) for done in range(self.rounds))
