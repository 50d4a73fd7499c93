"""``QuantizationConfig``: which engine, what is quantized, and how."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from hfcompress.config import Config, StepConfig

Backend = Literal["torch", "torchao", "onnxruntime", "openvino", "executorch", "litert", "coreml"]
Mode = Literal["auto", "dynamic", "static", "weight-only", "none"]
MODES: dict[str, tuple[str, ...]] = {
    "torch": ("dynamic",),
    "torchao": ("dynamic", "weight-only"),
    "onnxruntime": ("dynamic", "static", "none"),
    "openvino": ("static", "none"),
    "executorch": ("dynamic", "static", "none"),
    "litert": ("dynamic", "static", "none"),
    "coreml": ("weight-only", "none"),
}
"""The modes of each backend, its default first."""
RUN_HERE = tuple(backend for backend in MODES if backend != "coreml")
"""The backends whose results run on the machine that makes them."""
NOT_MEASURED = (
    "a Core ML package runs on Apple's systems alone, so nothing can be measured here; in Python, "
    "quantize(model, QuantizationConfig(backend='coreml')).save(folder) converts a model"
)
"""Why a recipe and a search have no such step."""
# Fields that only some backends support.
_ONLY: dict[str, tuple[str, ...]] = {
    "per_channel": ("torch", "onnxruntime", "executorch"),
    "exclude": ("torch", "torchao", "onnxruntime", "openvino", "executorch"),
    "mixed": ("torch", "torchao", "onnxruntime", "openvino", "executorch"),
    "embeddings": ("onnxruntime", "openvino"),
    "embedding_bits": ("onnxruntime", "openvino"),
    "reduce_range": ("onnxruntime",),
    "smooth": ("onnxruntime",),
    "per_token": ("onnxruntime",),
    "block_size": ("onnxruntime",),
    "calibrate": ("onnxruntime",),
    "floats": ("openvino",),
}


class MixedPrecisionConfig(Config):
    """Limits of the loss; modules stay in fp32, most loss by byte first, until the limits hold.

    Raises:
        ConfigError: no limit, or one out of range.
    """

    max_kl: float | None = Field(
        default=None,
        gt=0,
        strict=False,
        description="KL divergence from the fp32 model's class probabilities, mean over the "
        "calibration rows, in nats",
    )
    max_changed: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        strict=False,
        description="share of the calibration rows whose class may differ from fp32",
    )

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.max_kl is None and self.max_changed is None:
            raise ValueError("give max_kl or max_changed, or both")
        return self


class QuantizationConfig(StepConfig):
    """Post-training quantization; the argument of `quantize` and a recipe's ``quantize`` step.

    Raises:
        ConfigError: an unknown field, a wrong type, a value out of range, or a field that the
            backend does not support.
    """

    step_name = "quantize"
    compresses = True

    backend: Backend = Field(
        default="onnxruntime",
        description="the engine that runs the result: torch, torchao (through transformers), "
        "onnxruntime, openvino (with NNCF); for phones executorch (.pte), litert (.tflite) "
        "and coreml (.mlpackage, which runs on Apple's systems alone)",
    )
    mode: Mode = Field(
        default="auto",
        description="dynamic: ranges of activations are measured at run time; static: they come "
        "from calibration data; weight-only: activations stay in fp32; none: the engine runs "
        "the fp32 model; auto: static for openvino and, in onnxruntime, for convolutional "
        "networks, whose convolutions dynamic does not quantize; else dynamic",
    )
    bits: Literal[4, 8] = Field(
        default=8,
        description="bits of the weights; 4 only with torchao's weight-only, which on CPUs stores "
        "one in a byte",
    )
    per_channel: bool = Field(
        default=True,
        description="one scale for each output of a layer instead of one for the layer",
    )
    embeddings: bool = Field(
        default=True,
        description="quantize embedding tables, too (onnxruntime and openvino; litert and coreml "
        "always do, the other backends keep them in fp32)",
    )
    embedding_bits: Literal[4, 8] = Field(
        default=8,
        description="bits of embedding tables: 8 with one scale for each row, or 4 with one scale "
        "for 32 columns, a little over half the bytes",
    )
    exclude: tuple[str, ...] | None = Field(
        default=None,
        strict=False,
        description="patterns of modules that stay in fp32: a glob over the name, its last "
        "component, or a class name",
    )
    mixed: MixedPrecisionConfig | None = Field(
        default=None,
        description="also keep the most sensitive modules in fp32, until limits hold that are "
        "measured on calibration rows",
    )
    smooth: float | None = Field(
        default=None,
        ge=0,
        le=1,
        strict=False,
        description="onnxruntime: SmoothQuant's strength, often 0.5; moves outliers of activations "
        "on calibration rows into the weights (openvino always does). It helps models with "
        "outliers and harms others, so measure",
    )
    per_token: bool = Field(
        default=False,
        description="onnxruntime, dynamic: one activation scale for each token instead of one for "
        "the batch: much closer to fp32, a little slower (torchao always does)",
    )
    block_size: Literal[16, 32, 64, 128, 256] | None = Field(
        default=None,
        description="onnxruntime, dynamic: one scale for so many inputs, of weights and of each "
        "token's activations (MatMulNBits): the closest to fp32, no sum saturates; measure its "
        "speed on your processor",
    )
    reduce_range: bool = Field(
        default=False,
        description="onnxruntime: 7-bit weights, for processors without VNNI, whose 8-bit sums "
        "saturate",
    )
    calibrate: Literal["minmax", "percentile", "entropy"] = Field(
        default="minmax",
        description="how onnxruntime's static mode finds the range of activations: all values; "
        "a percentile of them; or the range of least entropy loss",
    )
    percentile: float = Field(
        default=99.99,
        gt=50,
        lt=100,
        strict=False,
        description="percentage of values within the range for calibrate: percentile",
    )
    floats: Literal["fp32", "auto"] = Field(
        default="fp32",
        description="openvino's precision for operations that are not int8: fp32, or bf16 if the "
        "processor supports it (auto)",
    )
    calibration_rows: int = Field(
        default=256,
        ge=1,
        description="number of a recipe's training rows that static mode, mixed and smooth use; "
        "the default uses all where there are fewer",
    )
    seed: int = Field(default=0, ge=0, description="for sampling these rows")

    @property
    def resolved_mode(self) -> str:
        """Return the mode, with ``auto`` resolved as for a network without convolutions."""
        return MODES[self.backend][0] if self.mode == "auto" else self.mode

    @property
    def runs_here(self) -> bool:
        """Return whether the result runs on the machine that makes it."""
        return self.backend in RUN_HERE

    @property
    def needs_rows(self) -> bool:
        """Return whether the step reads training rows."""
        return self.needs_calibration

    @property
    def needs_calibration(self) -> bool:
        """Return whether calibration data are needed."""
        return self.resolved_mode == "static" or bool(self.reads_rows)

    @property
    def reads_rows(self) -> str | None:
        """Return the option that needs calibration data in any mode, if one is set."""
        if self.mixed is not None:
            return "mixed"
        return "smooth" if self.smooth is not None else None

    @model_validator(mode="after")
    def _fits_the_backend(self) -> Self:
        possible = MODES[self.backend]
        if self.resolved_mode not in possible:
            raise ValueError(
                f"backend {self.backend} has no mode {self.mode}; it has: {', '.join(possible)}"
            )
        for field, backends in _ONLY.items():
            changed = getattr(self, field) != type(self).model_fields[field].default
            if changed and self.backend not in backends:
                raise ValueError(
                    f"{field} is an option of {' and '.join(backends)}, not of {self.backend}; "
                    f"leave it out"
                )
        if self.bits == 4 and (self.backend, self.resolved_mode) != ("torchao", "weight-only"):
            raise ValueError("bits: 4 needs backend: torchao and mode: weight-only")
        for field in ("per_token", "block_size"):
            if getattr(self, field) and self.resolved_mode != "dynamic":
                raise ValueError(f"{field} needs mode: dynamic")
        others = [name for name in ("per_token", "reduce_range") if getattr(self, name)]
        others += [] if self.per_channel else ["per_channel: false"]
        if self.block_size is not None and others:
            raise ValueError(f"block_size has scales of its own; leave {others[0]} out")
        if self.calibrate != "minmax" and self.resolved_mode != "static":
            raise ValueError(f"calibrate: {self.calibrate} needs mode: static")
        default = type(self).model_fields["percentile"].default
        if self.percentile != default and self.calibrate != "percentile":
            raise ValueError("percentile needs calibrate: percentile")
        if self.embedding_bits == 4 and not (self.embeddings and self.resolved_mode != "none"):
            raise ValueError("embedding_bits: 4 needs embeddings: true and a mode that quantizes")
        if (self.exclude or self.reads_rows) and self.resolved_mode == "none":
            name = "exclude" if self.exclude else self.reads_rows
            raise ValueError(f"mode: none quantizes nothing; leave {name} out")
        return self
