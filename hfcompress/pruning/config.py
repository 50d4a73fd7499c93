"""``PruningConfig``: what to prune, by which method, how much."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hfcompress.config import Config


class PruningConfig(Config):
    """One-shot unstructured pruning; the argument of `prune` and a recipe's ``prune`` step.

    Raises:
        ConfigError: an unknown field, a wrong type or a value out of range.
    """

    method: Literal["magnitude"] = Field(
        default="magnitude",
        description="importance of a weight; magnitude: its absolute value (Han 2015)",
    )
    sparsity: float = Field(
        ge=0, lt=1, strict=False, description="share of the target weights to set to zero, [0, 1)"
    )
    scope: Literal["layer", "global"] = Field(
        default="layer",
        description="weights compete within their layer (the same sparsity in each), or all "
        "together (one threshold)",
    )
    targets: tuple[str, ...] | None = Field(
        default=None,
        strict=False,
        min_length=1,
        description="patterns of the modules to prune: a glob over the name, a bare last "
        "component or a class name such as Linear; default: all but embeddings and head",
    )
    exclude: tuple[str, ...] | None = Field(
        default=None, strict=False, description="patterns of modules to leave alone"
    )
