"""``QuantizationConfig``: which engine, what is quantized, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from hfcompress.config import Config, StepConfig

Backend = Literal["torch", "torchao", "onnxruntime", "openvino"]
Mode = Literal["auto", "dynamic", "static", "weight-only", "none"]
MODES: dict[str, tuple[str, ...]] = {
    "torch": ("dynamic",),
    "torchao": ("dynamic", "weight-only"),
    "onnxruntime": ("dynamic", "static", "none"),
    "openvino": ("static", "none"),
}
"""What each engine can do, its default first."""
# Fields that say something to some engines only.
_ONLY: dict[str, tuple[str, ...]] = {
    "per_channel": ("torch", "onnxruntime"),
    "embeddings": ("onnxruntime", "openvino"),
    "embedding_bits": ("onnxruntime", "openvino"),
    "reduce_range": ("onnxruntime",),
    "smooth": ("onnxruntime",),
    "per_token": ("onnxruntime",),
    "calibrate": ("onnxruntime",),
    "floats": ("openvino",),
}


class MixedPrecisionConfig(Config):
    """How much quantizing may lose; what loses most for its bytes stays in fp32 until it holds.

    Raises:
        ConfigError: no limit at all, or one out of range.
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
        description="share of the calibration rows whose class may be another than in fp32",
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
            backend cannot honour.
    """

    step_name = "quantize"
    compresses = True

    backend: Backend = Field(
        default="onnxruntime",
        description="the engine that runs the result: torch, torchao (through transformers), "
        "onnxruntime, openvino (with NNCF)",
    )
    mode: Mode = Field(
        default="auto",
        description="dynamic: activations are quantized as they come; static: with ranges from "
        "calibration data; weight-only: activations stay in fp32; none: the engine runs the fp32 "
        "model; auto: static for openvino and, in onnxruntime, for networks of convolutions, which "
        "dynamic leaves alone; else dynamic",
    )
    bits: Literal[4, 8] = Field(
        default=8,
        description="of the weights; 4 for torchao's weight-only alone, which keeps each in a byte "
        "on CPUs",
    )
    per_channel: bool = Field(
        default=True, description="a scale for each output of a layer, not one for the layer"
    )
    embeddings: bool = Field(
        default=True,
        description="embedding tables in int8, too (onnxruntime and openvino; the others leave "
        "them in fp32)",
    )
    embedding_bits: Literal[4, 8] = Field(
        default=8,
        description="of embedding tables: 8 with a scale for each row, or 4 with a scale for "
        "32 neighbours, a little over half the bytes",
    )
    exclude: tuple[str, ...] | None = Field(
        default=None,
        strict=False,
        description="patterns of modules that stay in fp32: a glob over the name, a bare last "
        "component or a class name",
    )
    mixed: MixedPrecisionConfig | None = Field(
        default=None,
        description="keep in fp32, besides, what loses most, until a loss holds that is measured "
        "on calibration rows",
    )
    smooth: float | None = Field(
        default=None,
        ge=0,
        le=1,
        strict=False,
        description="onnxruntime: SmoothQuant's strength, often 0.5; outliers that calibration "
        "rows show in activations move into the weights (openvino does so unasked). It helps "
        "models with outliers and harms others, so measure",
    )
    per_token: bool = Field(
        default=False,
        description="onnxruntime, dynamic: a scale for the activations of each token, not one for "
        "the batch: much nearer to fp32, a little slower (torchao does so unasked)",
    )
    reduce_range: bool = Field(
        default=False,
        description="onnxruntime: weights of one bit less, for processors without VNNI, whose "
        "8-bit sums saturate",
    )
    calibrate: Literal["minmax", "percentile", "entropy"] = Field(
        default="minmax",
        description="how onnxruntime's static mode finds the range of activations: all that "
        "occurs; all but the outermost; or what loses least information",
    )
    percentile: float = Field(
        default=99.99,
        gt=50,
        lt=100,
        strict=False,
        description="what calibrate: percentile keeps, in percent",
    )
    floats: Literal["fp32", "auto"] = Field(
        default="fp32",
        description="what openvino computes in where it does not compute in int8: fp32, or bf16 "
        "where the processor has it (auto)",
    )
    calibration_rows: int = Field(
        default=256,
        ge=1,
        description="rows of a recipe's training data that static mode, mixed and smooth read",
    )
    seed: int = Field(default=0, ge=0, description="which rows those are")

    @property
    def resolved_mode(self) -> str:
        """The mode with ``auto`` decided as for a network of matrix products."""
        return MODES[self.backend][0] if self.mode == "auto" else self.mode

    @property
    def needs_rows(self) -> bool:
        """Whether the step reads training rows."""
        return self.needs_calibration

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration data are needed."""
        return self.resolved_mode == "static" or bool(self.reads_rows)

    @property
    def reads_rows(self) -> str | None:
        """The option that needs calibration data whatever the mode, if one is set."""
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
        if self.per_token and self.resolved_mode != "dynamic":
            raise ValueError("per_token needs mode: dynamic")
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
