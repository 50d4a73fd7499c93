"""Mixed precision: the most sensitive modules stay in fp32, as many as a given limit requires.

Each module is quantized alone to measure its loss (HAWQ, 1905.03696, uses the Hessian instead), in
torch with the engine's arithmetic, so that nothing is exported for it. The loss is the distance of
the logits from the fp32 model's, which needs no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hfcompress.errors import ConfigError
from hfcompress.inference import dense_logits
from hfcompress.quantization.answers import distributions
from hfcompress.quantization.config import MixedPrecisionConfig, QuantizationConfig
from hfcompress.quantization.engine import Arrays, Engine
from hfcompress.quantization.inputs import Classifier
from hfcompress.quantization.manifest import (
    LossReport,
    MixedPrecisionReport,
    SensitivityReport,
)
from hfcompress.quantization.qat import FakeQuantization
from hfcompress.training.outputs import infer_task

Logits = NDArray[np.float32]
Made = tuple[Engine, set[str]]
"""An engine, and the names of the modules that are quantized in it."""
# If the engine exceeds the limit, keep 1.5x as many modules in fp32; at most 6 tries.
_GROWTH, _TRIES = 1.5, 6


@dataclass(frozen=True)
class Loss:
    """The distance of logits from the fp32 model's.

    Attributes:
        kl: mean KL divergence of the rows' class probabilities from the fp32 model's, in nats.
        changed: share of the rows whose class is another.
    """

    kl: float
    changed: float

    def within(self, limits: MixedPrecisionConfig) -> bool:
        """Return whether both numbers are within a config's limits."""
        return (limits.max_kl is None or self.kl <= limits.max_kl) and (
            limits.max_changed is None or self.changed <= limits.max_changed
        )

    def to_dict(self) -> LossReport:
        """Return both numbers as JSON data."""
        return {"kl": self.kl, "changed": self.changed}


@dataclass(frozen=True)
class Sensitivity:
    """The loss of quantizing one module alone.

    Attributes:
        name: the module's.
        kl, changed: as in `Loss`.
        bytes: additional bytes of its weight in fp32.
    """

    name: str
    kl: float
    changed: float
    bytes: int


@dataclass(frozen=True)
class MixedReport:
    """The modules that stay in fp32, and why.

    Attributes:
        modules: sensitivity of each module, the first to keep in fp32 first.
        kept: how many of them stay in fp32.
        uniform: the loss with all of them quantized, predicted in torch.
        predicted: the loss with the first ``kept`` in fp32, predicted in torch.
        measured: the same loss, measured in the engine on the calibration rows.
        holds: whether ``measured`` is within the limits.
    """

    modules: tuple[Sensitivity, ...]
    kept: int
    uniform: Loss
    predicted: Loss
    measured: Loss
    holds: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modules in fp32."""
        return tuple(module.name for module in self.modules[: self.kept])

    @property
    def bytes(self) -> int:
        """Additional bytes of the modules in fp32."""
        return sum(module.bytes for module in self.modules[: self.kept])

    @property
    def sentence(self) -> str:
        """One sentence for the user: the modules in fp32, their bytes and the loss they avoid."""
        kept = ", ".join(f"{m.name} (alone {m.kl:.2g})" for m in self.modules[: self.kept])
        return (
            f"mixed precision keeps {self.kept} of {len(self.modules)} modules in fp32, "
            f"{self.bytes:,} bytes more: KL divergence {self.measured.kl:.2g} instead of "
            f"{self.uniform.kl:.2g}" + (f"; {kept}" if kept else "")
        )

    def to_dict(self) -> MixedPrecisionReport:
        """Return the losses, the bytes and the kept modules, each with its own loss, as JSON."""
        return {
            "kept": [cast(SensitivityReport, asdict(row)) for row in self.modules[: self.kept]],
            "kept_bytes": self.bytes,
            "uniform": self.uniform.to_dict(),
            "foretold": self.predicted.to_dict(),
            "measured": self.measured.to_dict(),
            "holds": self.holds,
        }


def loss_of(logits: Logits, dense: Logits) -> Loss:
    """Return the loss of logits [rows, classes] against the fp32 model's."""
    ours, theirs = (torch.from_numpy(x).double().log_softmax(-1) for x in (logits, dense))
    kl = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    return Loss(max(kl, 0.0), float(np.mean(logits.argmax(1) != dense.argmax(1))))


def keep_most_sensitive(
    model: Classifier,
    config: QuantizationConfig,
    batches: Sequence[Arrays],
    make: Callable[[Collection[str]], Made],
) -> tuple[Made, MixedReport]:
    """Quantize as many modules as the config's limits allow.

    Modules are kept in fp32 in the order of their loss by additional byte. The number is found by
    bisection, in torch; if the engine then exceeds the limits, more are kept.

    Args:
        model: fp32, in eval mode.
        config: with ``mixed``.
        batches: calibration inputs; the losses are measured on them.
        make: names of modules to keep in fp32 -> the engine and its quantized modules.

    Returns:
        The last result of ``make``, and the report.

    Raises:
        ConfigError: a model with a single output.
    """
    limits = config.mixed
    assert limits is not None
    kind = infer_task(model)

    def compared(run: Callable[[Arrays], Logits]) -> Logits:
        return distributions([run(batch) for batch in batches], batches, kind)

    dense = compared(partial(dense_logits, model))
    if dense.shape[1] < 2:
        raise ConfigError(
            "mixed precision compares class probabilities, and this model has one output; "
            "name the modules that stay in fp32 in exclude"
        )
    modules, kept, uniform, predicted = _predict(model, config, limits, dense, compared)
    names = [module.name for module in modules]
    for _ in range(_TRIES):
        made = make(names[:kept])
        measured = loss_of(compared(made[0].logits), dense)
        if measured.within(limits) or kept == len(names):
            break
        kept = min(len(names), max(kept + 1, round(kept * _GROWTH)))
    holds = measured.within(limits)
    return made, MixedReport(modules, kept, uniform, predicted, measured, holds)


def _predict(
    model: Classifier,
    config: QuantizationConfig,
    limits: MixedPrecisionConfig,
    dense: Logits,
    compared: Callable[[Callable[[Arrays], Logits]], Logits],
) -> tuple[tuple[Sensitivity, ...], int, Loss, Loss]:
    """Simulate the engine in torch.

    Returns:
        The modules in the order of keeping, how many the limits require in fp32, the loss with
        none of them in fp32, and the loss with that many.
    """
    fake = FakeQuantization(model, config)
    fake.start()
    try:

        def predict(active: Collection[str]) -> Loss:
            fake.active = active
            return loss_of(compared(partial(dense_logits, model)), dense)

        if fake.arithmetic.activations == "static":
            fake.observe(lambda: compared(partial(dense_logits, model)))
        modules = _ranked([(n, m, predict({n})) for n, m in fake.modules.items()])
        names = [module.name for module in modules]
        uniform, kept = predict(names), 0
        if not uniform.within(limits):
            kept = _fewest(len(names), lambda count: predict(names[count:]).within(limits))
        return modules, kept, uniform, predict(names[kept:])
    finally:
        fake.stop()


def _ranked(found: list[tuple[str, nn.Module, Loss]]) -> tuple[Sensitivity, ...]:
    rows = [
        Sensitivity(name, loss.kl, loss.changed, 3 * module.get_parameter("weight").numel())
        for name, module, loss in found
    ]
    return tuple(sorted(rows, key=lambda row: row.kl / row.bytes, reverse=True))


def _fewest(count: int, holds: Callable[[int], bool]) -> int:
    """Bisect for the smallest number from 1 to ``count`` that holds; ``count`` if none does."""
    low, high = 1, count
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high
