"""``quantization_aware``: fake quantization, for training or for predicting a loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import ConfigError, TargetError
from hfcompress.measure.macs import CONVOLUTIONS, has_own_forward, weighted_modules
from hfcompress.models.matrices import write_matrix
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import excluded_modules
from hfcompress.quantization.embedding_tables import quantize_table

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
# Moving average of static ranges in training (1712.05877, section 3.1).
_PACE = 0.05


class FakeQuantization:
    """Rounds the weights and activations of a model's modules to an engine's grids.

    `start` replaces only the ``forward`` of each module: parameters stay fp32 and in place, so
    names in the ``state_dict`` and checkpoints are those of the plain model.

    Args:
        model: the model.
        config: the config to quantize the model with; determines the arithmetic.

    Attributes:
        modules: the quantized modules by name: products, and convolutions and tables if the
            backend quantizes them.
        active: names of the modules that round now; all at first.

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
        self._before: dict[str, Callable[..., Tensor] | None] = {}
        self._observing = False

    def start(self) -> None:
        """Replace the modules' ``forward``."""
        for name, module in self.modules.items():
            self._before[name] = module.__dict__.get("forward")
            module.forward = partial(_FORWARD[_kind(module)], self, name, module)

    def stop(self) -> None:
        """Restore the modules' ``forward``; the model computes in fp32 again."""
        for name, before in self._before.items():
            module = self.modules[name]
            del module.forward
            if before is not None:
                module.forward = before
        self._before.clear()

    @torch.no_grad()
    def settle(self) -> None:
        """Round the weights of products to their grid in place, where quantizing loses nothing."""
        for name, module in self.modules.items():
            if not isinstance(module, nn.Embedding):
                write_matrix(module, self.weight(name, module))

    @torch.no_grad()
    def observe(self, run: Callable[[], object]) -> None:
        """Set static ranges to the smallest and largest activations while ``run`` runs."""
        self._observing = True
        try:
            run()
        finally:
            self._observing = False

    def weight(self, name: str, module: nn.Module) -> Tensor:
        """Return a product's rounded weight, outputs x inputs, with a gradient."""
        own = module.get_parameter("weight")
        matrix = own.t() if isinstance(module, Conv1D) else own.flatten(1)
        return fake_weight(matrix, self.arithmetic)

    def inputs(self, name: str, module: nn.Module, inputs: Tensor) -> Tensor:
        """Return a product's rounded inputs."""
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
        """Return a rounded table, cached until the table changes."""
        version = module.weight._version
        kept = self._tables.get(name)
        if kept is None or kept[0] != version:
            bits = self.arithmetic.table_bits or 8
            numbers = quantize_table(module.weight.detach().float().cpu().numpy(), bits)
            back = torch.from_numpy(numbers.dequantized()).to(module.weight.device)
            self._tables[name] = kept = (version, back)
        return kept[1]

    def is_on(self, name: str) -> bool:
        """Return whether a module rounds now."""
        return name in self.active

    @property
    def observing(self) -> bool:
        """Return whether ranges are being observed; nothing is rounded then."""
        return self._observing


@contextmanager
def quantization_aware(model: nn.Module, config: QuantizationConfig) -> Iterator[FakeQuantization]:
    """Make a model round as its engine will, for training inside the ``with`` block::

        with quantization_aware(model, config):
            trainer.train()
        small = quantize(model, config)

    At the end the model computes in fp32 again, with weights on the grid of the integers, so that
    quantizing does not change them. Zeros stay zero, so masks of pruned layers hold. If training
    fails, the weights are not rounded.

    Args:
        model: changed in place.
        config: the config for `hfcompress.quantize` afterwards.

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
    """Return the modules that a config's backend quantizes, by name; not those without weights.

    Raises:
        TargetError: an ``exclude`` pattern that matches nothing.
    """
    excluded = excluded_modules(model, config)
    arithmetic = arithmetic_of(config)
    tables = {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    tied = {id(table.weight) for table in tables.values()}
    found: dict[str, nn.Module] = dict(tables) if arithmetic.table_bits else {}
    for name, module in weighted_modules(model).items():
        weight, convolves = module.get_parameter("weight"), isinstance(module, CONVOLUTIONS)
        if weight.numel() and id(weight) not in tied and (arithmetic.convolutions or not convolves):
            found[name] = module
    excluded |= {name for name, module in found.items() if has_own_forward(module)}
    return {name: module for name, module in found.items() if name not in excluded}


def _union(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([torch.minimum(first[0], second[0]), torch.maximum(first[1], second[1])])


# --- forward passes ----------------------------------------------------------------------------


def _product(
    fake: FakeQuantization, name: str, module: nn.Linear | Conv1D, inputs: Tensor
) -> Tensor:
    if not fake.is_on(name) and not fake.observing:
        return functional.linear(inputs, _plain_matrix(module), module.bias)
    given = fake.inputs(name, module, inputs)
    weight = _plain_matrix(module) if fake.observing else fake.weight(name, module)
    return functional.linear(given, weight, module.bias)


def _convolution(fake: FakeQuantization, name: str, module: Convolution, inputs: Tensor) -> Tensor:
    if not fake.is_on(name) and not fake.observing:
        return _convolve(module, inputs, module.weight)
    given = fake.inputs(name, module, inputs)
    weight: Tensor = module.weight
    if not fake.observing:
        weight = fake.weight(name, module).view_as(weight)
    return _convolve(module, given, weight)


def _convolve(module: Convolution, inputs: Tensor, weight: Tensor) -> Tensor:
    found: Tensor = module._conv_forward(inputs, weight, module.bias)
    return found


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
    return "convolution" if isinstance(module, CONVOLUTIONS) else "product"


def _plain_matrix(module: nn.Linear | Conv1D) -> Tensor:
    weight: Tensor = module.weight
    return weight.t() if isinstance(module, Conv1D) else weight


Activations = Literal["none", "tensor", "token", "static"]
# With torchao's 4 bits, so many weights share a scale.
_GROUP = 32


@dataclass(frozen=True)
class Arithmetic:
    """The integer grids of an engine.

    Attributes:
        activations: ``tensor``: unsigned and affine, one range for each batch; ``token``: signed
            and symmetric, one range for each row; ``static``: as ``tensor``, with the range of
            calibration data; ``none``: not quantized.
        bits: of the weights.
        per_channel: one step for each output instead of one for the weight.
        table_bits: of embedding tables; None if they stay in fp32.
        convolutions: whether they are quantized, too.
        group: inputs of an output that share a step; None for all of them.
    """

    activations: Activations
    bits: int = 8
    per_channel: bool = True
    table_bits: int | None = None
    convolutions: bool = False
    group: int | None = None


def arithmetic_of(config: QuantizationConfig) -> Arithmetic:
    """Return the arithmetic of a config's backend and mode.

    NNCF also corrects biases and ranges for OpenVINO. That is not simulated, so OpenVINO loses less
    than the simulation.
    """
    mode = config.resolved_mode
    kinds: dict[str, Activations] = {"static": "static", "weight-only": "none", "none": "none"}
    by_token = config.backend == "torchao" or config.per_token or config.block_size is not None
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
    """Return a weight rounded to its symmetric grid.

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
    """Return rows of a table rounded to their grids, [..., columns].

    Steps are fp16, one for each row with 8 bits and one for 32 columns with 4 bits. With 4 bits the
    largest value determines the step, while `quantize_table` tries other steps, too.
    """
    columns = rows.shape[-1]
    group = _GROUP if bits == 4 and columns % _GROUP == 0 else columns
    parts = rows.reshape(*rows.shape[:-1], -1, group)
    largest = parts.detach().abs().amax(-1, keepdim=True)
    return _symmetric(parts, bits, largest, halves=True).reshape(rows.shape)


def fake_activations(inputs: Tensor, kind: Activations, range_: Tensor | None = None) -> Tensor:
    """Return activations rounded to their grid.

    Args:
        inputs: fp32, any shape; the last dimension holds the channels.
        kind: see `Arithmetic`.
        range_: for ``static``: the smallest and the largest value; others are clipped.
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
    if kind == "static":  # clipped values have no gradient
        inputs = inputs.clamp(float(low), float(high))
    return inputs + (rounded - inputs).detach()


def value_range(inputs: Tensor) -> Tensor:
    """Return the smallest and the largest value, with 0 included: [2]."""
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

    The forward pass rounds weights and activations to the backend's grids; gradients pass straight
    through (1712.05877). When training ends, the weights are on their grid and the model computes
    in fp32 again. Works together with `PruningCallback`: pruned weights stay zero.

    Args:
        config: the config to quantize the model with afterwards.

    Attributes:
        fake: the `FakeQuantization` while training runs.
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
        **kwargs: object,
    ) -> None:
        """Start rounding.

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
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Round the weights in place and stop rounding."""
        if self.fake is not None:
            self.fake.settle()
            self.fake.stop()
            self.fake = None
