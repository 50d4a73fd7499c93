"""Latency budgets: the dense and a smaller model, timed in turns on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration, run_on
from hfcompress.errors import CalibrationError
from hfcompress.inference import without_labels
from hfcompress.measure.latency import LatencyReport, measure_latency
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.report import Latencies


class TimedBudget:
    """A budget whose milliseconds are those of this machine.

    Args:
        dense: not changed.
        config: which budget.
        seconds: how long two models are timed, about.

    Attributes:
        latency: milliseconds of the dense model, where the budget is one of time.
        predicted: milliseconds that the widths found should take.
    """

    def __init__(self, dense: nn.Module, config: ShrinkConfig, seconds: float) -> None:
        self.config = config
        self.latency: float | None = None
        self.predicted: float | None = None
        self._dense = dense
        self._seconds = seconds

    @property
    def is_timed(self) -> bool:
        """Whether the budget is one of time."""
        return self.config.budget in ("latency", "speedup")

    def take_inputs(self, calibration: Calibration | None, length: int | None) -> None:
        """Set the inputs that are timed: a batch of calibration rows.

        Args:
            calibration: where it is from.
            length: tokens of each row; None for inputs that have no length.

        Raises:
            CalibrationError: no calibration data.
        """
        if calibration is None:
            raise CalibrationError(
                "a latency is measured on real rows; pass Calibration(batches) to shrink"
            )
        self._inputs = timed_inputs(calibration, self.config.batch_size, length)

    def latencies(self, model: nn.Module | None) -> Latencies | None:
        """The latencies for the report of the shrunk model (None: of a preview)."""
        if self.latency is None or self.predicted is None:
            return None
        if model is None:
            return Latencies(self.latency, self.predicted)
        dense, measured = self.measure(model)
        return Latencies(dense, self.predicted, measured)

    def measure(self, model: nn.Module) -> tuple[float, float]:
        """Milliseconds of the dense and of another model, interleaved."""
        models = {"dense": self._dense, "other": model}
        times = timed(models, self._inputs, self.config.precision, self._seconds).times
        return times["dense"].median, times["other"].median


def timed(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Tensor],
    precision: str,
    seconds: float = 4.0,
) -> LatencyReport:
    """Time models, interleaved.

    Args:
        models: by name; not changed.
        inputs: of the forward pass.
        precision: ``float32`` or ``bfloat16``: weights and inputs.
        seconds: about how long.
    """
    dtype = getattr(torch, precision)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    calls = {name: _call(_of_type(model, dtype).eval(), inputs) for name, model in models.items()}
    first = measure_latency(calls, warmup=1, repeats=1)
    round_ms = sum(one.median for one in first.times.values())
    repeats = int(np.clip(seconds * 1000 / max(round_ms, 1e-3), 5, 200))
    return measure_latency(calls, warmup=1, repeats=repeats)


def _of_type(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    same = all(p.dtype == dtype for p in model.parameters())
    return model if same else copy.deepcopy(model).to(dtype)


def _call(model: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[[], object]:
    return lambda: run_on(model, inputs)


def timed_inputs(
    calibration: Calibration, batch_size: int, length: int | None
) -> dict[str, Tensor]:
    """A batch of wanted size from calibration rows, without padding.

    Args:
        calibration: its first batch is repeated.
        batch_size: rows.
        length: tokens of each; None for inputs that have no length.
    """
    inputs = {}
    for name, tensor in without_labels(calibration.batches[0]).items():
        rows = tensor[torch.arange(batch_size) % len(tensor)]
        if length is not None and rows.dim() == 2:
            rows = rows[:, torch.arange(length) % rows.shape[1]]
            rows = torch.ones_like(rows) if name == "attention_mask" else rows
        inputs[name] = rows.contiguous()
    return inputs
