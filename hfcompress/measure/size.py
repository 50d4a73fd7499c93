"""What a model weighs: parameters, zeros, bytes on disk, MACs, weight statistics.

Nothing here changes the model. Tied weights count once everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from hfcompress.config import nearest
from hfcompress.errors import ConfigError
from hfcompress.measure.macs import count_macs, is_linear, weighted_layers
from hfcompress.measure.weights import analyze_weight_distribution, count_nonzeros
from hfcompress.utils import FormerPlain

StorageType = Literal["fp32", "fp16", "int8"]
_BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "int8": 4}  # of what is not quantized
_CODES: dict[str, str] = {"fp32": "F32", "fp16": "F16", "int8": "F32"}


def count_parameters(model: nn.Module, nonzero: bool = False, trainable_only: bool = False) -> int:
    """The number of parameters, tied ones once, buffers not counted.

    Args:
        model: any module.
        nonzero: count only values that are not exactly zero.
        trainable_only: count only parameters with ``requires_grad``.
    """
    parameters = [p for p in model.parameters() if p.requires_grad or not trainable_only]
    if nonzero:
        return sum(count_nonzeros(parameter) for parameter in parameters)
    return sum(parameter.numel() for parameter in parameters)


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros of one layer's weight, under its module's name; biases are not in it."""

    name: str
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """The fraction of zeros, 0 for an empty weight."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Sparsity:
    """The fraction of exact zeros: of all parameters, of the targets together, per layer."""

    model: float
    targets: float
    layers: tuple[LayerSparsity, ...]

    def layer(self, name: str) -> LayerSparsity:
        """One layer's zeros.

        Raises:
            ConfigError: no such layer was counted.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        known = [layer.name for layer in self.layers]
        raise ConfigError(f"no layer {name!r} was counted{nearest(name, known)}")


def calculate_sparsity(model: nn.Module, targets: Iterable[str] | None = None) -> Sparsity:
    """Count exact zeros in the whole model, in the targets and in each of them.

    Args:
        model: any module.
        targets: names of modules whose weights are the targets (those that were pruned); by
            default every Linear, convolution and Conv1D.

    Raises:
        TargetError: a target that the model does not have, or that has no weight.
    """
    layers = tuple(
        LayerSparsity(name, weight.numel(), weight.numel() - count_nonzeros(weight))
        for name, weight in weighted_layers(model, targets).items()
    )
    total = count_parameters(model)
    zeros = total - count_parameters(model, nonzero=True)
    weights = sum(layer.weights for layer in layers)
    return Sparsity(
        model=zeros / total if total else 0.0,
        targets=sum(layer.zeros for layer in layers) / weights if weights else 0.0,
        layers=layers,
    )


def calculate_model_size(model: nn.Module, dtype: StorageType = "fp32") -> int:
    """Bytes of the model's safetensors file, header included; zeros take as much as any value.

    Args:
        model: any module; what counts is its ``state_dict``, shared storage once.
        dtype: how floating-point values are stored. ``fp32`` and ``fp16`` store all of them so.
            ``int8`` stores the weights of ``nn.Linear`` and ``Conv1D`` as int8 with one fp32
            scale per output channel and everything else (embeddings, norms, biases,
            convolutions, a Linear tied to an embedding) as fp32. Integers keep their own type.

    Raises:
        ConfigError: an unknown dtype.
    """
    if dtype not in _BYTES:
        raise ConfigError(f"dtype must be one of {', '.join(_BYTES)}, not {dtype!r}")
    quantized = _quantized(model) if dtype == "int8" else {}
    entries: list[tuple[str, str, list[int], int]] = []
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        key = _identity(tensor)
        if key in seen:
            continue
        seen.add(key)
        shape = list(tensor.shape)
        if id(tensor) in quantized:
            channels = quantized[id(tensor)]
            entries.append((name, "I8", shape, tensor.numel()))
            entries.append((f"{name}_scale", "F32", [channels], 4 * channels))
        elif tensor.is_floating_point():
            entries.append((name, _CODES[dtype], shape, _BYTES[dtype] * tensor.numel()))
        else:
            size = tensor.element_size()
            entries.append((name, f"I{8 * size}", shape, size * tensor.numel()))
    return _header_bytes(entries) + sum(size for *_, size in entries)


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    # Meta tensors have no storage to compare: only the object itself tells them apart.
    if tensor.device.type == "meta" or not tensor.numel():
        return (id(tensor),)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def _quantized(model: nn.Module) -> dict[int, int]:
    """``id(weight) -> output channels`` of the weights that int8 storage quantizes."""
    found: dict[int, int] = {}
    for module in model.modules():
        if is_linear(module):
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            found[id(weight)] = weight.shape[0 if isinstance(module, nn.Linear) else 1]
    for module in model.modules():
        if isinstance(module, nn.Embedding):  # the look-up reads the tied weight as it is
            found.pop(id(module.weight), None)
    return found


def _header_bytes(entries: list[tuple[str, str, list[int], int]]) -> int:
    """Length of a safetensors header: eight bytes of length, then JSON padded to eight bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # The file is ordered by dtype, widest first, then by name.
    ordered = sorted(entries, key=lambda entry: (-int(entry[1][1:]), entry[0]))
    for name, code, shape, size in ordered:
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return 8 + -(-len(text.encode()) // 8) * 8


@dataclass(frozen=True)
class CompressionRatio:
    """How many times smaller than the dense model; 1 is no change, None is not known."""

    parameters: float
    nonzero_parameters: float
    bytes: float
    macs: float | None


class CompressionMetrics(FormerPlain):
    """What a model weighs at this moment, taken in one pass over it.

    Args:
        model: any module; not kept, not changed.
        targets: names of the modules that compression is about; by default every Linear,
            convolution and Conv1D.
        inputs: keyword arguments for one forward pass; given, MACs are counted.

    Raises:
        TargetError: a target that the model does not have.
        ModelError: weights that are not finite, or inputs that the model does not take.
    """

    count_parameters = staticmethod(count_parameters)
    calculate_model_size = staticmethod(calculate_model_size)
    analyze_weight_distribution = staticmethod(analyze_weight_distribution)

    def __init__(
        self,
        model: nn.Module,
        targets: Iterable[str] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        names = [targets] if isinstance(targets, str) else targets and list(targets)
        self.parameters = count_parameters(model)
        self.nonzero_parameters = count_parameters(model, nonzero=True)
        self.trainable_parameters = count_parameters(model, trainable_only=True)
        self.bytes: dict[StorageType, int] = {
            "fp32": calculate_model_size(model, "fp32"),
            "fp16": calculate_model_size(model, "fp16"),
            "int8": calculate_model_size(model, "int8"),
        }
        self.sparsity = calculate_sparsity(model, names)
        self.weights = analyze_weight_distribution(model, names) if self.sparsity.layers else None
        self.macs = None if inputs is None else count_macs(model, inputs)

    def to_dict(self) -> dict[str, Any]:
        """Every figure as data that JSON can hold; rows of a report use the same names."""
        return {
            "parameters": self.parameters,
            "nonzero_parameters": self.nonzero_parameters,
            "trainable_parameters": self.trainable_parameters,
            "bytes": dict(self.bytes),
            "actual_sparsity": self.sparsity.targets,
            "model_sparsity": self.sparsity.model,
            "layers": [asdict(layer) for layer in self.sparsity.layers],
            "weights": None if self.weights is None else self.weights.to_dict(),
            "macs": None if self.macs is None else self.macs.total,
        }

    def compare(self, dense: CompressionMetrics) -> CompressionRatio:
        """How many times smaller this model is than the dense one (fp32 bytes)."""
        both = self.macs is not None and dense.macs is not None
        return CompressionRatio(
            parameters=_ratio(dense.parameters, self.parameters),
            nonzero_parameters=_ratio(dense.nonzero_parameters, self.nonzero_parameters),
            bytes=_ratio(dense.bytes["fp32"], self.bytes["fp32"]),
            macs=_ratio(dense.macs.total, self.macs.total) if both else None,  # type: ignore[union-attr]
        )


def _ratio(dense: int, now: int) -> float:
    return dense / now if now else float("inf")
