"""The engines that a bench knows, by name; no torch, no engine is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EngineKind:
    """One way to run an fp32 checkpoint.

    Attributes:
        runtime: who computes; ratios within one runtime say what compression alone gains.
        dtype: of the weights of torch's own kinds; empty for the others.
        quantization: fields of `QuantizationConfig`; empty for torch's own kinds.
    """

    runtime: str
    dtype: str = ""
    quantization: Mapping[str, Any] = field(default_factory=dict)


ENGINES: dict[str, EngineKind] = {
    "torch-fp32": EngineKind("torch", "float32"),
    "torch-bf16": EngineKind("torch", "bfloat16"),
    "torch-int8": EngineKind("torch", quantization={"backend": "torch"}),
    "torchao-int8": EngineKind("torch", quantization={"backend": "torchao"}),
    "onnxruntime-fp32": EngineKind(
        "onnxruntime", quantization={"backend": "onnxruntime", "mode": "none"}
    ),
    "onnxruntime-int8": EngineKind("onnxruntime", quantization={"backend": "onnxruntime"}),
    "openvino-fp32": EngineKind("openvino", quantization={"backend": "openvino", "mode": "none"}),
    "openvino-bf16": EngineKind(
        "openvino", quantization={"backend": "openvino", "mode": "none", "floats": "auto"}
    ),
    "openvino-int8": EngineKind("openvino", quantization={"backend": "openvino"}),
    "openvino-int8-bf16": EngineKind(
        "openvino", quantization={"backend": "openvino", "floats": "auto"}
    ),
}
"""Engine by name, each runtime's fp32 first; its name is ``RUNTIME-fp32``."""
REFERENCE = "torch-fp32"


def kind_name(backend: str, mode: str, floats: str = "fp32", bits: int = 8) -> str:
    """What a quantized folder's engine is called: ``onnxruntime-int8``, ``openvino-fp32``.

    Args:
        backend, mode, floats, bits: as in `QuantizationConfig`, the mode resolved.
    """
    numbers = {"none": "bf16" if floats == "auto" else "fp32", "dynamic": "int8", "static": "int8"}
    precision = numbers.get(mode, f"int{bits}")
    detail = {"weight-only": " weights", "static": " static" if backend == "onnxruntime" else ""}
    between = "-bf16" if mode == "static" and floats == "auto" else ""
    return f"{backend}-{precision}{detail.get(mode, '')}{between}"


def runtime_of(name: str) -> str:
    """Who computes for an engine of this name."""
    head = name.split("-")[0]
    return "torch" if head == "torchao" else head
