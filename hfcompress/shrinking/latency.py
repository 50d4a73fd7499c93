"""What budgets of heads and of channels share: the dense model and another on one clock."""

from __future__ import annotations

from torch import nn

from hfcompress.calibration.batches import Calibration
from hfcompress.errors import CalibrationError
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.report import Latencies
from hfcompress.shrinking.sublayers.latency_table import timed, timed_inputs


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
        """Choose what is timed: a batch of calibration rows.

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
        """What is to be reported of the shrunk model (None: of a preview)."""
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
