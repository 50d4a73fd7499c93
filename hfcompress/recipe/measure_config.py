"""``MeasureConfig``: the ``measure`` part of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from hfcompress.config import Config, Names


class LatencyConfig(Config):
    """A batch whose latency is measured, the dense model in torch beside the row's own engine."""

    batch_size: int = Field(1, ge=1, description="examples at a time")
    length: int = Field(32, ge=1, description="tokens of each; images have the model's size")
    repeats: int = Field(
        20,
        ge=1,
        description="counted rounds, the two models in turns; there are more until 2 s are over",
    )
    warmup: int = Field(3, ge=0, description="rounds before them")
    fixed: bool = Field(
        False,
        description="time the form that is compiled for this very shape, where the engine has one "
        "(openvino; see load(shape=...)): texts are padded to it then",
    )

    @property
    def label(self) -> str:
        """What people call it: examples x tokens."""
        return f"{self.batch_size} x {self.length}"


class MeasureConfig(Config):
    """What to measure of each trial."""

    metric: str = Field("accuracy", description="metric of the curve: accuracy, f1, matthews ...")
    also: Names = Field((), description="more metrics, kept in the rows")
    batch_size: int = Field(32, ge=1, description="rows in a batch")
    macs: bool = Field(True, description="count multiply-accumulates of one example")
    precision: Literal["auto", "fp32"] = Field(
        "auto",
        description="auto: bf16 where the processor is fast at it, and fp32 again for every row "
        "whose class bf16 could change; fp32: all rows in fp32",
    )
    every_step: bool = Field(
        False,
        description="a row for the dense model and after each step, not for the last one alone",
    )
    latency: tuple[LatencyConfig, ...] = Field(
        (), strict=False, description="batches to time; one may stand without a list"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_latency_is_a_list_of_one(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("latency"), (Mapping, LatencyConfig)):
            data = {**data, "latency": [data["latency"]]}
        return data

    def identity(self) -> dict[str, Any]:
        """As `Config.identity`; whether the steps before have rows changes none of them."""
        return {name: value for name, value in super().identity().items() if name != "every_step"}
