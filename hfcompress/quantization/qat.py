"""``quantization_aware``: a model that computes as if it were quantized, while it trains or not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import ConfigError, TargetError
from hfcompress.models.architectures import compressible_modules, write_matrix
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.embedding_tables import quantize_table
from hfcompress.quantization.fake import (
    arithmetic_of,
    fake_activations,
    fake_rows,
    fake_weight,
    value_range,
)
from hfcompress.quantization.select import excluded_modules

# How fast static ranges follow those of the batches in training (1712.05877, section 3.1).
_PACE = 0.05


class FakeQuantization:
    """Makes the modules of a model compute with numbers on an engine's grids.

    Only ``forward`` of each module is replaced while it is on: parameters stay where they are and
    are fp32, names in the ``state_dict`` stay, and a checkpoint is an ordinary one.

    Args:
        model: the model.
        config: the config that it will be quantized with; it says the arithmetic.

    Attributes:
        modules: what is quantized, by name: products, and convolutions and tables where the
            backend takes them.
        active: which of them are on now; all at first.

    Raises:
        ConfigError: mode none.
        TargetError: there is nothing to quantize, or an ``exclude`` pattern matches nothing.
    """

    def __init__(self, model: nn.Module, config: QuantizationConfig) -> None:
        if config.resolved_mode == "none":
            raise ConfigError("mode: none quantizes nothing; choose a mode that does")
        self.arithmetic = arithmetic_of(config)
        self.modules = quantizable(model, config)
        if not self.modules:
            raise TargetError(f"{type(model).__name__} has no Linear to quantize")
        self.active: Collection[str] = set(self.modules)
        self._ranges: dict[str, Tensor] = {}
        self._tables: dict[str, tuple[int, Tensor]] = {}
        self._before: dict[str, Any] = {}
        self._observing = False

    def start(self) -> None:
        """Replace the modules' ``forward``."""
        for name, module in self.modules.items():
            self._before[name] = module.__dict__.get("forward")
            own: Any = partial(_FORWARD[_kind(module)], self, name, module)
            module.forward = own

    def stop(self) -> None:
        """Put it back; the model computes in fp32 again."""
        for name, before in self._before.items():
            module = self.modules[name]
            del module.forward
            if before is not None:
                module.forward = before
        self._before.clear()

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the weights of products on their grid, so that quantizing them loses nothing."""
        for name, module in self.modules.items():
            if not isinstance(module, nn.Embedding):
                write_matrix(module, self.weight(name, module))

    @torch.no_grad()
    def observe(self, run: Callable[[], object]) -> None:
        """Find static ranges: the smallest and largest activations of whatever is run."""
        self._observing = True
        try:
            run()
        finally:
            self._observing = False

    def weight(self, name: str, module: nn.Module) -> Tensor:
        """A product's weight as it is multiplied: outputs x inputs, with a gradient."""
        own: Any = module.weight
        matrix = own.t() if isinstance(module, Conv1D) else own.flatten(1)
        return fake_weight(matrix, self.arithmetic)

    def inputs(self, name: str, module: nn.Module, inputs: Tensor) -> Tensor:
        """A product's inputs as they are multiplied."""
        if self.arithmetic.activations != "static":
            return fake_activations(inputs, self.arithmetic.activations)
        found, known = value_range(inputs), self._ranges.get(name)
        if self._observing:
            both = found if known is None else _union(found, known)
            self._ranges[name] = both
            return inputs
        if known is None or module.training:
            known = found if known is None else known.lerp(found, _PACE)
            self._ranges[name] = known
        return fake_activations(inputs, "static", known)

    def table(self, name: str, module: nn.Embedding) -> Tensor:
        """A table as its rows are looked up; made anew when it has changed."""
        version = module.weight._version
        kept = self._tables.get(name)
        if kept is None or kept[0] != version:
            bits = self.arithmetic.table_bits or 8
            numbers = quantize_table(module.weight.detach().float().cpu().numpy(), bits)
            back = torch.from_numpy(numbers.dequantized()).to(module.weight.device)
            self._tables[name] = kept = (version, back)
        return kept[1]

    def is_on(self, name: str) -> bool:
        """Whether a module is quantized now."""
        return name in self.active

    @property
    def observing(self) -> bool:
        """Whether ranges are looked for, and nothing is rounded."""
        return self._observing


@contextmanager
def quantization_aware(model: nn.Module, config: QuantizationConfig) -> Iterator[FakeQuantization]:
    """Train inside it, then quantize with the same config::

        with quantization_aware(model, config):
            trainer.train()
        small = quantize(model, config)

    At the end the model computes in fp32 again, with weights that lie on the grid of the
    integers: quantizing moves them no more. Zeros stay zeros, so masks of pruned layers hold.
    Where training fails, the weights stay as it left them.

    Args:
        model: changed in place.
        config: backend, mode and what else `hfcompress.quantize` will be called with.

    Raises:
        ConfigError, TargetError: as `FakeQuantization`.
    """
    fake = FakeQuantization(model, config)
    fake.start()
    try:
        yield fake
        fake.settle()
    finally:
        fake.stop()


def quantizable(model: nn.Module, config: QuantizationConfig) -> dict[str, nn.Module]:
    """The modules that a config's backend quantizes, by name.

    Raises:
        TargetError: an ``exclude`` pattern that matches nothing.
    """
    excluded = excluded_modules(model, config)
    arithmetic = arithmetic_of(config)
    tables = {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    tied = {id(table.weight) for table in tables.values()}
    found: dict[str, nn.Module] = dict(tables) if arithmetic.table_bits else {}
    for name, module in compressible_modules(model).items():
        if isinstance(module, nn.Conv2d) and not arithmetic.convolutions:
            continue
        if id(module.weight) not in tied:
            found[name] = module
    return {name: module for name, module in found.items() if name not in excluded}


def _union(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([torch.minimum(first[0], second[0]), torch.maximum(first[1], second[1])])


# --- forward passes ----------------------------------------------------------------------------


def _product(fake: FakeQuantization, name: str, module: Any, inputs: Tensor) -> Tensor:
    if not fake.is_on(name) and not fake.observing:
        return functional.linear(inputs, _plain_matrix(module), module.bias)
    given = fake.inputs(name, module, inputs)
    weight = _plain_matrix(module) if fake.observing else fake.weight(name, module)
    return functional.linear(given, weight, module.bias)


def _convolution(fake: FakeQuantization, name: str, module: Any, inputs: Tensor) -> Tensor:
    if not fake.is_on(name) and not fake.observing:
        return module._conv_forward(inputs, module.weight, module.bias)  # type: ignore[no-any-return]
    given = fake.inputs(name, module, inputs)
    weight = module.weight
    if not fake.observing:
        weight = fake.weight(name, module).view_as(weight)
    return module._conv_forward(given, weight, module.bias)  # type: ignore[no-any-return]


def _lookup(fake: FakeQuantization, name: str, module: nn.Embedding, ids: Tensor) -> Tensor:
    learns = torch.is_grad_enabled() and module.weight.requires_grad
    if not fake.is_on(name) or fake.observing:
        return functional.embedding(ids, module.weight, module.padding_idx)
    if learns:
        rows = functional.embedding(ids, module.weight, module.padding_idx)
        return fake_rows(rows, fake.arithmetic.table_bits or 8)
    return functional.embedding(ids, fake.table(name, module), module.padding_idx)


_FORWARD: Mapping[str, Callable[..., Tensor]] = {
    "product": _product,
    "convolution": _convolution,
    "lookup": _lookup,
}


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Embedding):
        return "lookup"
    return "convolution" if isinstance(module, nn.Conv2d) else "product"


def _plain_matrix(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight.t() if isinstance(module, Conv1D) else weight
