"""``BenchConfig``: the grid of a bench and how it is timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Self

from pydantic import Field, model_validator

from hfcompress.config import Config, nearest


@dataclass(frozen=True)
class EngineKind:
    """One way to run an fp32 checkpoint.

    Attributes:
        runtime: the library that computes; ratios within one runtime show what compression gains.
        dtype: of the weights of torch's own kinds; empty for the others.
        quantization: fields of `QuantizationConfig`; empty for torch's own kinds.
    """

    runtime: str
    dtype: str = ""
    quantization: Mapping[str, str] = field(default_factory=dict)


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
    """Return the name of a quantized folder's engine: ``onnxruntime-int8``, ``openvino-fp32``.

    Args:
        backend, mode, floats, bits: as in `QuantizationConfig`, the mode resolved.
    """
    numbers = {"none": "bf16" if floats == "auto" else "fp32", "dynamic": "int8", "static": "int8"}
    precision = numbers.get(mode, f"int{bits}")
    detail = {"weight-only": " weights", "static": "" if backend == "openvino" else " static"}
    between = "-bf16" if mode == "static" and floats == "auto" else ""
    return f"{backend}-{precision}{detail.get(mode, '')}{between}"


def runtime_of(name: str) -> str:
    """Return the runtime of an engine of this name."""
    head = name.split("-")[0]
    return "torch" if head == "torchao" else head


Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]


class BenchConfig(Config):
    """The argument of `bench`; its fields are the options of ``hfcompress bench``.

    Raises:
        ConfigError: an unknown field, a wrong type, a value out of range, or an unknown engine.
    """

    batch: Counts = Field(default=(1, 32), description="examples at once")
    length: Counts = Field(
        default=(32, 128), description="tokens of each text; images have a size of their own"
    )
    threads: Counts | None = Field(
        default=None, strict=False, description="threads of each engine; default: every core"
    )
    engine: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None,
        strict=False,
        description=f"of {', '.join(ENGINES)}; default: all that can run here",
    )
    repeats: int = Field(default=20, ge=3, description="rounds that are counted, at most")
    warmup: int = Field(default=2, ge=1, description="rounds that are not")
    seconds: float = Field(
        default=30.0,
        gt=0,
        strict=False,
        description="for one point of the grid, beyond which there are fewer rounds, 5 at least",
    )
    fixed: bool = Field(
        default=False,
        description="compile openvino for each point's shape: faster, for texts that are padded "
        "to it (load(shape=...))",
    )
    memory: bool = Field(
        default=True, description="measure each engine's memory, in a process of its own"
    )

    @model_validator(mode="after")
    def _known_engines(self) -> Self:
        for name in self.engine or ():
            if name not in ENGINES:
                raise ValueError(f"unknown engine {name!r}{nearest(name, ENGINES)}")
        return self
