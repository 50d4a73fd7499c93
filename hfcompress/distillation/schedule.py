"""Schedules of temperature and alpha during training (standard library only)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

ScheduleKind = Literal["constant", "linear", "cosine"]

_SHAPES: dict[ScheduleKind, Callable[[float], float]] = {
    # Fraction of the way from start to end, for progress in [0, 1].
    "constant": lambda progress: 0.0,
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}


def value_at(kind: ScheduleKind, start: float, end: float | None, step: int, steps: int) -> float:
    """Return the value for an update.

    Args:
        kind: constant keeps the start; linear and cosine go to the end.
        start: value in the first update.
        end: value in the last update; None keeps the start.
        step: number of the update, from 0.
        steps: number of updates.
    """
    if end is None:
        return start
    done = _SHAPES[kind](min(1.0, step / max(1, steps - 1)))
    # A weighted mean instead of start + done * difference, so that the end is exact.
    return end * done + start * (1 - done)
