"""Sparsity as a function of the optimizer step (standard library only).

Step ``t`` means: after ``t`` optimizer steps, before the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hfcompress.errors import ConfigError

ScheduleKind = Literal["cubic", "linear", "constant", "one_shot"]

_SHAPES: dict[str, Callable[[float], float]] = {
    # Share of the way from the initial to the final sparsity, for progress in [0, 1].
    "cubic": lambda progress: 1 - (1 - progress) ** 3,
    "linear": lambda progress: progress,
    "constant": lambda progress: 1.0,
    "one_shot": lambda progress: 1.0,
}


@dataclass(frozen=True)
class SparsitySchedule:
    """The steps at which masks are updated, and the sparsity of each.

    ``cubic`` follows Zhu and Gupta (1710.01878): ``s_f + (s_i - s_f) (1 - progress)^3``, fast
    while much is redundant and slow near the end. ``linear`` goes straight. ``constant`` asks for
    the final sparsity from the first update on and lets the masks change until the end.
    ``one_shot`` chooses the masks once, at the start.

    Attributes:
        kind: the shape.
        final: sparsity from ``end`` on, in (0, 1].
        initial: sparsity of the first update (cubic and linear), in [0, final].
        start: step of the first update; before it nothing is pruned.
        end: step of the last update, not before ``start``.
        frequency: steps between updates; the sparsity is constant in between.

    Raises:
        ConfigError: a value out of range.
    """

    kind: ScheduleKind
    final: float
    initial: float = 0.0
    start: int = 0
    end: int = 0
    frequency: int = 1

    def __post_init__(self) -> None:
        if self.kind not in _SHAPES:
            raise ConfigError(f"schedule must be one of {', '.join(_SHAPES)}, not {self.kind!r}")
        if not 0 < self.final <= 1:
            raise ConfigError(f"the final sparsity must lie above 0 and up to 1, not {self.final}")
        if not 0 <= self.initial <= self.final:
            raise ConfigError(
                f"the initial sparsity {self.initial} must lie between 0 and the final sparsity "
                f"{self.final}"
            )
        if not 0 <= self.start <= self.end:
            raise ConfigError(
                f"the schedule must end ({self.end}) no earlier than it starts ({self.start}), "
                "and start at step 0 or later"
            )
        if self.frequency < 1:
            raise ConfigError(f"frequency must be 1 step or more, not {self.frequency}")

    @property
    def last_update(self) -> int:
        """Step of the last update."""
        return self.start if self.kind == "one_shot" else self.end

    def is_update(self, step: int) -> bool:
        """Whether masks are updated after ``step`` optimizer steps."""
        if not self.start <= step <= self.last_update:
            return False
        return (step - self.start) % self.frequency == 0 or step == self.last_update

    def progress(self, step: int) -> float:
        """Share of the way from the initial to the final sparsity, from 0 to 1.

        It is constant between updates, and 0 before the start.
        """
        if step < self.start:
            return 0.0
        if step >= self.last_update:
            return 1.0
        done = (step - self.start) // self.frequency * self.frequency
        return _SHAPES[self.kind](done / (self.end - self.start))

    def sparsity(self, step: int) -> float:
        """Sparsity after ``step`` optimizer steps: 0 before the start."""
        if step < self.start:
            return 0.0
        progress = self.progress(step)
        # Rounding must make it neither fall on the way nor miss the end.
        reached = self.initial + progress * (self.final - self.initial)
        return self.final if progress == 1 else min(reached, self.final)
