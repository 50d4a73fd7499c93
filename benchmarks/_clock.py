"""Minutes that a training or a calibration takes on cores of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class CpuClock:
    """Started when made; a machine that also does other work does not slow it.

    Minutes are the larger of two: the CPU time of the thread that started it, which works or
    spins all the time while nothing else wants its core, and the CPU time of the whole process
    divided by torch's threads. On a quiet machine that is what the wall clock says.
    """

    wall_start: float = field(default_factory=time.perf_counter)
    own_start: float = field(default_factory=time.thread_time)
    all_start: float = field(default_factory=time.process_time)

    @property
    def minutes(self) -> float:
        """CPU minutes of each of torch's threads."""
        own = time.thread_time() - self.own_start
        whole = time.process_time() - self.all_start
        return max(own, whole / torch.get_num_threads()) / 60

    @property
    def wall(self) -> float:
        """Minutes by the wall clock."""
        return (time.perf_counter() - self.wall_start) / 60
