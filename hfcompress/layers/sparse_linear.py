"""``SparseLinear``: a Linear that skips zeros on CPU in fp32 and is dense everywhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfcompress.errors import ConfigError, MissingExtraError, TargetError
from hfcompress.layers.sparse_products import CsrProduct, KernelProduct, Product
from hfcompress.measure.latency import LatencyReport, measure_latency
from hfcompress.measure.macs import has_own_forward
from hfcompress.models.architectures import select_modules
from hfcompress.utils import FormerPlain

Method = Literal["kernel", "csr"]
_PRODUCTS: dict[Method, Callable[[Tensor], Product]] = {"kernel": KernelProduct, "csr": CsrProduct}


class SparseLinear(nn.Linear):
    """A Linear whose product skips zeros: fp32 on CPU, no gradient, not traced or compiled.

    Everywhere else (training, autocast, another device or type, export) it computes what
    ``nn.Linear`` computes. It keeps the dense weight under the same name, so that saving, training
    on and moving work as before; a changed weight is read again. Sums are taken in
    another order than in a dense product: results differ by rounding.

    Args:
        linear: gives weight and bias, which are shared and not copied.
        method: ``kernel`` (the extra ``sparse``) or ``csr``.

    Raises:
        MissingExtraError: ``kernel`` without llvmlite.
        TargetError: ``kernel`` for a weight with a side shorter than a register.
    """

    def __init__(self, linear: nn.Linear, method: Method = "kernel") -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.method = method
        self._product: Product = _PRODUCTS[method](linear.weight)
        self._read = _version(linear.weight)
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``: [..., inputs] -> [..., outputs]."""
        if not self._skips_zeros(input):
            return F.linear(input, self.weight, self.bias)
        if self._read != _version(self.weight):
            self._product = _PRODUCTS[self.method](self.weight)
            self._read = _version(self.weight)
        rows = input.reshape(-1, self.in_features).contiguous()
        return self._product(rows, self.bias).view(*input.shape[:-1], self.out_features)

    def _skips_zeros(self, input: Tensor) -> bool:
        return (
            input.dtype == self.weight.dtype == torch.float32
            and input.device.type == self.weight.device.type == "cpu"
            and input.numel() > 0
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch._C._get_tracing_state()
        )

    def dense(self) -> nn.Linear:
        """A plain Linear with the same weight and bias, shared."""
        linear = nn.Linear(1, 1, device="meta")
        linear.in_features, linear.out_features = self.in_features, self.out_features
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """As ``nn.Linear`` prints it, and how zeros are skipped."""
        return f"{super().extra_repr()}, method={self.method}"

    def __deepcopy__(self, memo: dict[int, object]) -> SparseLinear:
        """A copy with a weight of its own; compiled code is shared."""
        return type(self)(copy.deepcopy(self.dense(), memo), self.method)


def _version(weight: Tensor) -> tuple[int, int, int]:
    """Changes whenever the weight is replaced or written into."""
    written = 0 if weight.is_inference() else weight._version
    return id(weight), weight.data_ptr(), written


# Below this gain a layer stays dense: it would be lost in the noise of the measurement.
WORTH_IT = 1.05
_WARMUP, _REPEATS = 2, 9
# Nine rounds of a small layer take less than a millisecond: one interruption would decide.
_SECONDS = 0.05


@dataclass(frozen=True)
class LayerChoice:
    """How one layer is computed from now on.

    Attributes:
        name: the layer.
        sparsity: fraction of zeros in its weight.
        dense_ms: median time of the dense product.
        sparse_ms: median time of the fastest sparse one.
        method: that one; None where dense is as fast.
    """

    name: str
    sparsity: float
    dense_ms: float
    sparse_ms: float
    method: Method | None


@dataclass(frozen=True)
class SparseReport(FormerPlain):
    """What `sparsify` measured and chose.

    Attributes:
        layers: every layer that was looked at.
        tokens: rows times length that it was measured for.
        note: one sentence on what was gained, and on what would be faster still.
    """

    layers: tuple[LayerChoice, ...]
    tokens: int
    note: str

    def to_dict(self) -> dict[str, Any]:
        """As data that JSON can hold."""
        return asdict(self)


def sparsify(model: nn.Module, batch_size: int = 1, length: int = 32) -> SparseReport:
    """Make a pruned model's Linears skip their zeros where that is faster on this CPU.

    Args:
        model: changed in place; on CPU, fp32. Its layers stay trainable, see `SparseLinear`;
            `densify` undoes it.
        batch_size: rows that will be computed at once.
        length: tokens in a row, padding included.

    Returns:
        What was measured, layer by layer, and a word where nothing gains.

    Raises:
        ConfigError: a size below 1, or a model that is not fp32 on CPU.
        TargetError: a model without a Linear to look at.
    """
    if batch_size < 1 or length < 1:
        raise ConfigError(f"batch_size and length must be 1 or more: {batch_size}, {length}")
    tokens = batch_size * length
    choices = []
    for name, module in select_modules(densify(model)).items():
        if isinstance(module, nn.Linear) and not has_own_forward(module):
            if module.weight.device.type != "cpu" or module.weight.dtype != torch.float32:
                raise ConfigError(
                    f"{name} is {module.weight.dtype} on {module.weight.device}; "
                    f"sparse products are for fp32 on CPU"
                )
            choices.append(_choose(model, name, module, tokens))
    return SparseReport(tuple(choices), tokens, _note(choices, tokens))


def densify(model: nn.Module) -> nn.Module:
    """Plain Linears again in the place of every `SparseLinear`; returns the same model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, SparseLinear):
            model.set_submodule(name, module.dense())
    return model


def _choose(model: nn.Module, name: str, linear: nn.Linear, tokens: int) -> LayerChoice:
    sparsity = float((linear.weight == 0).float().mean())
    candidates = _candidates(linear) if sparsity else {}
    times = _times(linear, candidates, tokens)
    dense = times.times["dense"].median
    ratios = {method: times.ratio("dense", method).median for method in candidates}
    best = max(ratios, key=ratios.__getitem__, default=None)
    if best is None:
        return LayerChoice(name, sparsity, dense, dense, None)
    chosen = best if ratios[best] >= WORTH_IT else None
    if chosen is not None:
        model.set_submodule(name, candidates[chosen])
    return LayerChoice(name, sparsity, dense, times.times[best].median, chosen)


def _candidates(linear: nn.Linear) -> dict[Method, SparseLinear]:
    """The ways that this installation and this shape allow."""
    found: dict[Method, SparseLinear] = {"csr": SparseLinear(linear, "csr")}
    with suppress(MissingExtraError, TargetError):  # CSR is always available
        found["kernel"] = SparseLinear(linear, "kernel")
    return found


def _times(linear: nn.Linear, candidates: dict[Method, SparseLinear], tokens: int) -> LatencyReport:
    x = torch.randn(tokens, linear.in_features, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], Tensor]] = {"dense": lambda: linear(x)}
    for method, candidate in candidates.items():
        calls[method] = lambda candidate=candidate: candidate(x)  # type: ignore[misc]
    seconds = _SECONDS if candidates else 0.0
    return measure_latency(calls, _WARMUP, _REPEATS, seconds=seconds)


def _note(choices: list[LayerChoice], tokens: int) -> str:
    still = "dense int8 in ONNX Runtime or OpenVINO is faster still"
    gained = [choice for choice in choices if choice.method is not None]
    if not gained:
        most = max((choice.sparsity for choice in choices), default=0.0)
        return (
            f"nothing gains for {tokens} tokens: at most {most:.0%} of a layer's weights are "
            f"zero, and skipping them costs more than multiplying; {still}"
        )
    before = sum(choice.dense_ms for choice in choices)
    after = sum(
        choice.dense_ms if choice.method is None else choice.sparse_ms for choice in choices
    )
    return (
        f"{len(gained)} of {len(choices)} layers skip their zeros: {before:.2f} ms become "
        f"{after:.2f} ms for {tokens} tokens ({before / after:.1f} times faster); {still}"
    )
