from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

import pytest
import torch

from hfcompress.errors import ConfigError
from hfcompress.measure.latency import Latency, LatencyReport, measure_latency


class FakeClock:
    """Time that moves only when a callable says so, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds

        return run


def test_times_are_milliseconds_of_counted_rounds_only() -> None:
    clock = FakeClock()
    times = iter([9.0, 9.0, 0.004, 0.001, 0.002, 0.003, 0.010])

    def shrinking() -> None:
        clock.now += next(times)

    found = measure_latency({"a": shrinking}, warmup=2, repeats=5, clock=clock).times["a"]
    assert found.samples == pytest.approx((4, 1, 2, 3, 10))
    assert (found.median, found.minimum, found.maximum) == pytest.approx((3, 1, 10))
    assert found.quartiles == pytest.approx((2, 4))
    assert found.to_dict() == pytest.approx(
        {"median": 3, "minimum": 1, "maximum": 10, "low": 2, "high": 4, "repeats": 5}
    )


def test_callables_take_turns_and_the_first_place_rotates() -> None:
    clock = FakeClock()
    both = {"a": clock.work("a", 1), "b": clock.work("b", 1)}
    measure_latency(both, warmup=1, repeats=2, clock=clock)
    assert "".join(clock.calls) == "abbaab"


def test_settling_calls_are_made_and_not_counted() -> None:
    clock = FakeClock()
    times = {"a": iter([9, 1, 9, 2, 9, 3]), "b": iter([7, 4, 7, 5, 7, 6])}

    def work(name: str) -> None:
        clock.calls.append(name)
        clock.now += next(times[name])

    both = {name: partial(work, name) for name in times}
    found = measure_latency(both, warmup=1, repeats=2, settle=1, clock=clock).times
    assert "".join(clock.calls) == "aabbbbaaaabb"
    assert found["a"].samples == pytest.approx((2000, 3000))
    assert found["b"].samples == pytest.approx((5000, 6000))


def test_rounds_go_on_until_they_took_the_seconds_asked_for() -> None:
    clock = FakeClock()
    both = {"a": clock.work("a", 0.3), "b": clock.work("b", 0.1)}
    found = measure_latency(both, warmup=5, repeats=2, seconds=1.9, clock=clock)
    assert len(found.times["a"].samples) == len(found.times["b"].samples) == 5
    found = measure_latency(both, warmup=0, repeats=7, seconds=1.9, clock=clock)
    assert len(found.times["a"].samples) == 7


def test_the_ratio_is_taken_pair_by_pair() -> None:
    # Every round the whole machine is slower; within a round one is always half the other.
    report = LatencyReport({"dense": Latency((2, 20, 200, 4)), "small": Latency((1, 10, 100, 1))})
    ratio = report.ratio("dense", "small")
    assert (ratio.median, ratio.low) == (2.0, 2.0)
    assert ratio.high == 2.5
    assert report.to_dict()["small"]["median"] == 5.5
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        report.ratio("dense", "smal")


def test_a_real_clock_sees_more_work_take_longer() -> None:
    small, large = torch.randn(8, 8), torch.randn(512, 512)
    report = measure_latency(
        {"small": lambda: small @ small, "large": lambda: large @ large}, warmup=1, repeats=5
    )
    assert report.ratio("large", "small").median > 2


def test_gradients_and_the_garbage_collector_are_off_only_meanwhile() -> None:
    seen: list[tuple[bool, bool]] = []

    def look() -> None:
        seen.append((torch.is_inference_mode_enabled(), gc.isenabled()))

    measure_latency({"look": look}, warmup=0, repeats=1)
    assert seen == [(True, False)]
    assert gc.isenabled()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="write device: cpu"):
        measure_latency({"a": lambda: None}, device="cuda")


def test_cuda_is_synchronized_around_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(str(device)))
    measure_latency({"a": lambda: events.append("a")}, warmup=0, repeats=2, device="cuda:0")
    assert events == ["cuda:0", "a", "cuda:0"] * 2


def test_nothing_to_time_and_no_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        measure_latency({})
    with pytest.raises(ConfigError, match="repeats"):
        measure_latency({"a": lambda: None}, repeats=0)
    with pytest.raises(ConfigError, match="warmup"):
        measure_latency({"a": lambda: None}, warmup=-1)
