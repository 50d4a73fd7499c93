"""Mixed precision: what loses most stays in fp32, until a given loss holds.

One pass measures what each module loses alone (HAWQ, 1905.03696, asks the Hessian instead), in
torch with the engine's arithmetic, so nothing is exported for it. No labels are needed: the loss
is how far the logits move.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from hfcompress.errors import ConfigError
from hfcompress.inference import dense_logits
from hfcompress.quantization.config import MixedPrecisionConfig, QuantizationConfig
from hfcompress.quantization.engine import Arrays, Engine
from hfcompress.quantization.qat import FakeQuantization

Logits = NDArray[np.float32]
Made = TypeVar("Made", bound=tuple[Engine, Any])
# An engine that loses more than torch foretold has this much more kept, at most so many times.
_MORE, _ROUNDS = 1.5, 6


@dataclass(frozen=True)
class Loss:
    """How far logits are from the fp32 model's.

    Attributes:
        kl: mean KL divergence of the rows' class probabilities from the fp32 model's, in nats.
        changed: share of the rows whose class is another.
    """

    kl: float
    changed: float

    def within(self, limits: MixedPrecisionConfig) -> bool:
        """Whether it is no more than a config allows."""
        return (limits.max_kl is None or self.kl <= limits.max_kl) and (
            limits.max_changed is None or self.changed <= limits.max_changed
        )


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one module alone loses.

    Attributes:
        name: of the module.
        kl, changed: as in `Loss`.
        bytes: what its weight takes more in fp32.
    """

    name: str
    kl: float
    changed: float
    bytes: int


@dataclass(frozen=True)
class MixedReport:
    """What stays in fp32, and why.

    Attributes:
        modules: of all, what they lose alone; what is kept first stands first.
        kept: how many of them stay in fp32.
        uniform: the loss with all of them quantized, foretold in torch.
        foretold: the loss with what is kept, foretold in torch.
        measured: the same, measured in the engine on the calibration rows.
        holds: whether ``measured`` is within the limits.
    """

    modules: tuple[Sensitivity, ...]
    kept: int
    uniform: Loss
    foretold: Loss
    measured: Loss
    holds: bool

    @property
    def names(self) -> tuple[str, ...]:
        """What stays in fp32."""
        return tuple(module.name for module in self.modules[: self.kept])

    @property
    def bytes(self) -> int:
        """What keeping them costs."""
        return sum(module.bytes for module in self.modules[: self.kept])

    @property
    def sentence(self) -> str:
        """What is kept, what that costs and what it saves, for people."""
        kept = ", ".join(f"{m.name} (alone {m.kl:.2g})" for m in self.modules[: self.kept])
        return (
            f"mixed precision keeps {self.kept} of {len(self.modules)} modules in fp32, "
            f"{self.bytes:,} bytes more: KL divergence {self.measured.kl:.2g} instead of "
            f"{self.uniform.kl:.2g}" + (f"; {kept}" if kept else "")
        )

    def to_dict(self) -> dict[str, Any]:
        """As data that JSON can hold: losses, bytes, and what is kept with its own loss."""
        return {
            "kept": [asdict(module) for module in self.modules[: self.kept]],
            "kept_bytes": self.bytes,
            "uniform": asdict(self.uniform),
            "foretold": asdict(self.foretold),
            "measured": asdict(self.measured),
            "holds": self.holds,
        }


def loss_of(logits: Logits, dense: Logits) -> Loss:
    """The loss of logits [rows, classes] against the fp32 model's."""
    ours, theirs = (torch.from_numpy(x).double().log_softmax(-1) for x in (logits, dense))
    kl = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    return Loss(max(kl, 0.0), float(np.mean(logits.argmax(1) != dense.argmax(1))))


def keep_most_sensitive(
    model: PreTrainedModel,
    config: QuantizationConfig,
    batches: Sequence[Arrays],
    make: Callable[[Collection[str]], Made],
) -> tuple[Made, MixedReport]:
    """Quantize as much as the config's limits allow.

    Modules are kept by what they lose for each byte that keeping them costs. How many is found by
    halving, in torch; where the engine then loses more than the limits, more are kept.

    Args:
        model: fp32, in eval mode.
        config: with ``mixed``.
        batches: calibration inputs; the losses are measured on them.
        make: names of modules to keep in fp32 -> the engine, and what else belongs to it.

    Returns:
        What ``make`` gave, and the report.

    Raises:
        ConfigError: a model without classes.
    """
    limits = config.mixed
    assert limits is not None
    classes: Any = model.config.num_labels
    if classes < 2:
        raise ConfigError(
            "mixed precision compares class probabilities, and this model has one output; "
            "name what stays in fp32 in exclude"
        )
    dense = np.concatenate([dense_logits(model, batch) for batch in batches])
    fake = FakeQuantization(model, config)
    fake.start()
    try:

        def foretell(active: Collection[str]) -> Loss:
            fake.active = active
            return loss_of(np.concatenate([dense_logits(model, b) for b in batches]), dense)

        if fake.arithmetic.activations == "static":
            fake.observe(lambda: [dense_logits(model, batch) for batch in batches])
        modules = _ranked([(n, m, foretell({n})) for n, m in fake.modules.items()])
        names = [module.name for module in modules]
        uniform = foretell(names)
        kept = 0 if uniform.within(limits) else _fewest(
            len(names), lambda count: foretell(names[count:]).within(limits)
        )  # fmt: skip
        foretold = foretell(names[kept:])
    finally:
        fake.stop()
    for _ in range(_ROUNDS):
        made = make(names[:kept])
        measured = loss_of(np.concatenate([made[0].logits(batch) for batch in batches]), dense)
        if measured.within(limits) or kept == len(names):
            break
        kept = min(len(names), max(kept + 1, round(kept * _MORE)))
    holds = measured.within(limits)
    return made, MixedReport(modules, kept, uniform, foretold, measured, holds)


def _ranked(found: list[tuple[str, nn.Module, Loss]]) -> tuple[Sensitivity, ...]:
    rows = [
        Sensitivity(name, loss.kl, loss.changed, 3 * _weights(module))
        for name, module, loss in found
    ]
    return tuple(sorted(rows, key=lambda row: row.kl / row.bytes, reverse=True))


def _weights(module: nn.Module) -> int:
    weight: Any = module.weight
    return int(weight.numel())


def _fewest(count: int, holds: Callable[[int], bool]) -> int:
    """The smallest number from 1 on that holds, where more always hold better; else ``count``."""
    low, high = 1, count
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high
