"""``quantization_aware``: a model that computes as if it were quantized, while it trains or not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import ConfigError, TargetError
from hfcompress.models.architectures import compressible_modules, write_matrix
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import excluded_modules
from hfcompress.quantization.embedding_tables import quantize_table

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


Activations = Literal["none", "tensor", "token", "static"]
# Weights that share a scale in torchao's 4 bits.
_GROUP = 32


@dataclass(frozen=True)
class Arithmetic:
    """Where an engine puts the numbers of a product.

    Attributes:
        activations: ``tensor``: unsigned and affine, the range of each batch's tensor; ``token``:
            signed and symmetric, the range of each row; ``static``: as ``tensor``, with the range
            of calibration data; ``none``: not quantized.
        bits: of the weights.
        per_channel: a step for each output, not one for the weight.
        table_bits: of embedding tables; None where they stay in fp32.
        convolutions: they are quantized, too.
        group: inputs of an output that share a step; None for all of them.
    """

    activations: Activations
    bits: int = 8
    per_channel: bool = True
    table_bits: int | None = None
    convolutions: bool = False
    group: int | None = None


def arithmetic_of(config: QuantizationConfig) -> Arithmetic:
    """The arithmetic of a config's backend and mode.

    OpenVINO's weights and ranges are corrected by NNCF besides, which is not imitated: it loses
    less than this shows.
    """
    mode = config.resolved_mode
    kinds: dict[str, Activations] = {"static": "static", "weight-only": "none", "none": "none"}
    by_token = config.backend == "torchao" or config.per_token
    dynamic: Activations = "token" if by_token else "tensor"
    tables = config.backend in ("onnxruntime", "openvino") and config.embeddings
    bits = config.bits - 1 if config.reduce_range else config.bits
    return Arithmetic(
        activations=kinds.get(mode, dynamic),
        bits=bits,
        per_channel=config.per_channel,
        table_bits=config.embedding_bits if tables else None,
        convolutions=mode == "static",
        group=_GROUP if config.bits == 4 else None,
    )


def fake_weight(matrix: Tensor, arithmetic: Arithmetic) -> Tensor:
    """A weight on its grid, symmetric.

    Args:
        matrix: fp32 [outputs, inputs].
        arithmetic: bits, channels and groups.
    """
    if not arithmetic.per_channel:
        return _symmetric(matrix, arithmetic.bits, matrix.detach().abs().amax())
    group = arithmetic.group
    parts = matrix
    if group and matrix.shape[1] % group == 0:
        parts = matrix.reshape(matrix.shape[0], -1, group)
    largest = parts.detach().abs().amax(-1, keepdim=True)
    return _symmetric(parts, arithmetic.bits, largest).reshape(matrix.shape)


def fake_rows(rows: Tensor, bits: int) -> Tensor:
    """Rows of a table on their grids: 8 bits a row, or 4 bits and 32 neighbours; [..., columns].

    Steps are fp16. With 4 bits the step is that of the largest number, where `quantize_table`
    tries others, too.
    """
    columns = rows.shape[-1]
    group = _GROUP if bits == 4 and columns % _GROUP == 0 else columns
    parts = rows.reshape(*rows.shape[:-1], -1, group)
    largest = parts.detach().abs().amax(-1, keepdim=True)
    return _symmetric(parts, bits, largest, halves=True).reshape(rows.shape)


def fake_activations(inputs: Tensor, kind: Activations, range_: Tensor | None = None) -> Tensor:
    """Activations on their grid.

    Args:
        inputs: fp32, any shape; the last dimension is a token's.
        kind: see `Arithmetic`.
        range_: for ``static``, the smallest and the largest number; beyond them is cut off.
    """
    if kind == "none":
        return inputs
    if kind == "token":
        return _symmetric(inputs, 8, inputs.detach().abs().amax(-1, keepdim=True))
    found = value_range(inputs) if range_ is None else range_
    low, high = found[0], found[1]
    step = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).tiny)
    zero = (-low / step).round()
    integers = ((inputs / step).detach().round() + zero).clamp(0, 255)
    rounded = (integers - zero) * step
    if kind == "static":  # no gradient where a number is cut off
        inputs = inputs.clamp(float(low), float(high))
    return inputs + (rounded - inputs).detach()


def value_range(inputs: Tensor) -> Tensor:
    """Smallest and largest number, 0 always between them: [2]."""
    low, high = torch.aminmax(inputs.detach())
    return torch.stack([low.clamp_max(0), high.clamp_min(0)])


def _symmetric(values: Tensor, bits: int, largest: Tensor, halves: bool = False) -> Tensor:
    half = 2 ** (bits - 1) - 1
    step = largest / half
    step = step.half().to(values.dtype) if halves else step
    step = torch.where(step > 0, step, torch.ones_like(step))
    rounded = (values.detach() / step).round().clamp(-half, half) * step
    return values + (rounded - values).detach()


class QuantizationAwareCallback(TrainerCallback):
    """Trains a model as it will compute once it is quantized::

        config = QuantizationConfig(backend="onnxruntime")
        Trainer(..., callbacks=[QuantizationAwareCallback(config)]).train()
        small = quantize(model, config)

    Weights and activations are rounded to the backend's grids on the way forward, and gradients
    pass as if they were not (1712.05877). When training ends the weights lie on their grid and the
    model computes in fp32 again. Goes with `PruningCallback`: dropped weights stay zero.

    Args:
        config: backend, mode and what else the model will be quantized with.

    Attributes:
        fake: the `FakeQuantization`, while training runs.
    """

    def __init__(self, config: QuantizationConfig) -> None:
        self.config = config
        self.fake: FakeQuantization | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Round from now on.

        Raises:
            ConfigError: mode none, or training that shards weights.
            TargetError: there is nothing to quantize.
        """
        assert model is not None
        if args.deepspeed or args.fsdp:
            raise ConfigError(
                "quantization-aware training needs whole weights in each process; leave deepspeed "
                "and fsdp out, and use plain data parallel training"
            )
        if self.fake is not None:  # an earlier training failed
            self.fake.stop()
        self.fake = FakeQuantization(model, self.config)
        self.fake.start()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the weights on their grid, and stop rounding."""
        if self.fake is not None:
            self.fake.settle()
            self.fake.stop()
            self.fake = None
