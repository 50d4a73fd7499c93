"""Latency: warm, interleaved round by round, with its spread, on CPU and CUDA."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfcompress.config import nearest
from hfcompress.errors import ConfigError
from hfcompress.measure.environment import check_device
from hfcompress.utils import FormerPlain


@dataclass(frozen=True)
class Latency:
    """Times of one callable in milliseconds: all of them in order, and their summary."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle time."""
        return float(np.median(self.samples))

    @property
    def minimum(self) -> float:
        """The best time."""
        return min(self.samples)

    @property
    def maximum(self) -> float:
        """The worst time."""
        return max(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The times that a quarter and three quarters of the runs stay below."""
        low, high = np.quantile(self.samples, [0.25, 0.75])
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """The summary as data that JSON can hold, in milliseconds."""
        low, high = self.quartiles
        return {
            "median": self.median,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "low": low,
            "high": high,
            "repeats": len(self.samples),
        }


@dataclass(frozen=True)
class Ratio:
    """A speed-up taken round by round: its median and its quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class LatencyReport(FormerPlain):
    """The times of every callable of one interleaved measurement."""

    times: dict[str, Latency]

    def ratio(self, slow: str, fast: str) -> Ratio:
        """How many times faster ``fast`` is than ``slow``, both of the same round compared.

        Pairing by round cancels what slows the whole machine for a while.

        Raises:
            ConfigError: a name that was not measured.
        """
        slow_times, fast_times = (self._samples(name) for name in (slow, fast))
        low, median, high = np.quantile(slow_times / fast_times, [0.25, 0.5, 0.75])
        return Ratio(float(median), float(low), float(high))

    def _samples(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        if name not in self.times:
            raise ConfigError(f"no latency {name!r} was measured{nearest(name, self.times)}")
        return np.asarray(self.times[name].samples)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Every summary as data that JSON can hold, in milliseconds."""
        return {name: latency.to_dict() for name, latency in self.times.items()}


def measure_latency(
    callables: Mapping[str, Callable[[], object]],
    warmup: int = 3,
    repeats: int = 20,
    *,
    seconds: float = 0.0,
    settle: int = 0,
    device: str | torch.device = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyReport:
    """Time callables in turn, round after round, so that a busy moment hits all of them.

    Each round starts with another callable; gradients and the garbage collector are off. On CUDA
    the device is synchronized before and after each call.

    Args:
        callables: name -> a call without arguments, such as ``lambda: model(**inputs)``.
        warmup: rounds that are run and not counted.
        repeats: rounds that are counted.
        seconds: more rounds are counted until they have taken this long together, so that the
            median outlasts a bad moment of the machine.
        settle: calls before each counted one that are not counted, so that a small model finds its
            own weights in the caches, as it does where it runs alone, and not another's.
        device: where the callables compute.
        clock: seconds, rising.

    Raises:
        ConfigError: no callable, no round to count, or a CUDA device that is not there.
    """
    if not callables:
        raise ConfigError("there is nothing to time; give at least one callable")
    if repeats < 1 or warmup < 0 or settle < 0:
        raise ConfigError(
            f"repeats must be 1 or more, warmup and settle 0 or more: {repeats}, {warmup}, {settle}"
        )
    synchronize = _synchronizer(torch.device(device))
    samples: dict[str, list[float]] = {name: [] for name in callables}
    names = list(callables)
    with torch.inference_mode(), _no_garbage_collection():
        counted = 0.0
        for step in itertools.count():
            if step >= warmup + repeats and counted >= seconds:
                break
            start = step % len(names)
            for name in names[start:] + names[:start]:
                for _ in range(settle):
                    callables[name]()
                milliseconds = _time(callables[name], synchronize, clock)
                if step >= warmup:
                    samples[name].append(milliseconds)
                    counted += milliseconds / 1000
    return LatencyReport({name: Latency(tuple(times)) for name, times in samples.items()})


def _time(
    function: Callable[[], object], synchronize: Callable[[], object], clock: Callable[[], float]
) -> float:
    synchronize()
    begin = clock()
    function()
    synchronize()
    return (clock() - begin) * 1000


def _synchronizer(device: torch.device) -> Callable[[], object]:
    if device.type != "cuda":
        return lambda: None
    check_device(str(device))
    return lambda: torch.cuda.synchronize(device)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
