"""``CompressTarget``: what `compress` searches for."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from hfcompress.config import Config
from hfcompress.quantization.config import MODES, NOT_MEASURED, RUN_HERE, Backend
from hfcompress.recipes.schema import LatencyConfig
from hfcompress.utils import Fields, parse_size, size_text


class CompressTarget(Config):
    """How small, how fast, and how much may be lost; the argument of `compress`.

    Raises:
        ConfigError: neither a size nor a speedup, an unreadable size, a value out of range.
    """

    max_size: int | None = Field(
        None, ge=1, description="bytes of the model's files: a number, or 10MB, 500KB, 1.5MiB"
    )
    max_drop: float = Field(
        1.0, ge=0, strict=False,
        description="points (hundredths) of the metric that may be lost against the dense model",
    )  # fmt: skip
    speedup: float | None = Field(
        None, gt=0, strict=False, description="times faster than the dense model in torch fp32"
    )
    minutes: float | None = Field(
        None, gt=0, strict=False,
        description="go on for so long after a first model meets the target, and begin nothing "
        "that would take longer; without it the first that does is the answer",
    )  # fmt: skip
    backend: Backend = Field("onnxruntime", description="the engine of the result")
    mode: str = Field("auto", description="of the engine's quantization")
    confidence: float | None = Field(
        None, gt=0.5, lt=0.999, strict=False,
        description="say how sure it is that max_drop holds, by an exact bound on the measured "
        "rows: 0.95; accuracy only",
    )  # fmt: skip
    metric: str | None = Field(
        None, description="what may drop; the task's usual metric by default"
    )
    latency: LatencyConfig = Field(
        default_factory=LatencyConfig, description="the batch that speedup is taken at"
    )

    @field_validator("max_size", mode="before")
    @classmethod
    def _parse_size(cls, value: object) -> object:
        return parse_size(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.max_size is None and self.speedup is None:
            raise ValueError("give max_size, speedup or both; there is nothing to search for")
        if self.confidence is not None and self.metric not in (None, "accuracy"):
            raise ValueError(
                f"confidence is an exact bound for accuracy, not for {self.metric}; leave it out"
            )
        if self.backend not in RUN_HERE:
            raise ValueError(f"backend: {self.backend}: {NOT_MEASURED}")
        modes = ("auto", *MODES[self.backend])
        if self.mode not in modes:
            raise ValueError(f"backend {self.backend} has no mode {self.mode}: {', '.join(modes)}")
        return self

    @property
    def quantization(self) -> Fields:
        """The quantize step's fields."""
        return {"backend": self.backend, "mode": self.mode}

    @property
    def finer(self) -> Fields:
        """Fields that lose less and take longer; empty where the engine has none."""
        dynamic = self.backend == "onnxruntime" and self.mode in ("auto", "dynamic")
        return {"per_token": True} if dynamic else {}

    @property
    def sentence(self) -> str:
        """The target in words."""
        parts = [f"a drop of {self.max_drop:g} points"]
        if self.max_size is not None:
            parts.insert(0, size_text(self.max_size))
        text = " and ".join(f"at most {part}" for part in parts)
        if self.speedup is not None:
            text += f", {self.speedup:g} times faster at {self.latency.label} or more"
        return text
