"""A temperature or an alpha that changes while training goes on (standard library only)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

ScheduleKind = Literal["constant", "linear", "cosine"]

_SHAPES: dict[ScheduleKind, Callable[[float], float]] = {
    # Share of the way from the start to the end, for progress in [0, 1].
    "constant": lambda progress: 0.0,
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}


def value_at(kind: ScheduleKind, start: float, end: float | None, step: int, steps: int) -> float:
    """The value that holds in an update.

    Args:
        kind: constant stays at the start; linear and cosine go to the end.
        start: value in the first update.
        end: value in the last one; None stays at the start.
        step: number of the update, from 0.
        steps: how many updates there are.
    """
    if end is None:
        return start
    done = _SHAPES[kind](min(1.0, step / max(1, steps - 1)))
    # The weighted mean, not start + done * difference, so that the end is exact.
    return end * done + start * (1 - done)
