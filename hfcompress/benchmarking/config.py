"""``BenchConfig``: the grid of a bench and how it is timed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from hfcompress.benchmark.kinds import ENGINES
from hfcompress.config import Config, nearest

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
                raise ValueError(f"there is no engine {name!r}{nearest(name, ENGINES)}")
        return self
