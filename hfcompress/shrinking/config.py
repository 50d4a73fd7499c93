"""``ShrinkConfig``: the budget of `shrink` and how the units to remove are chosen."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from hfcompress.config import Config

Score = Literal["reconstruction", "magnitude", "l1", "batch_norm", "taylor", "fisher"]
BUDGETS = ("macs", "parameters", "bytes", "latency", "speedup")
"""The fields of which exactly one says how small."""


class ShrinkConfig(Config):
    """Structured pruning; the argument of `shrink` and a recipe's ``shrink`` step.

    Raises:
        ConfigError: an unknown field, a wrong type, a value out of range, no budget or two.
    """

    macs: float | None = Field(
        None,
        gt=0,
        le=1,
        strict=False,
        description="share of the layers' multiply-accumulates to keep, (0, 1]",
    )
    parameters: int | None = Field(None, ge=1, description="parameters of the whole model, at most")
    bytes: int | None = Field(None, ge=1, description="bytes of the whole model's tensors, at most")
    latency: float | None = Field(
        None, gt=0, strict=False, description="milliseconds of a forward pass on this machine"
    )
    speedup: float | None = Field(
        None, ge=1, strict=False, description="times faster than the dense model on this machine"
    )
    layers: int | None = Field(
        None, ge=1, description="whole layers to keep: those whose removal moves predictions most"
    )
    heads: bool = Field(True, description="attention heads may be removed")
    neurons: bool = Field(True, description="feed-forward neurons may be removed")
    channels: bool = Field(True, description="channels of other networks may be removed")
    score: Score = Field(
        "reconstruction",
        description="which units are removed. reconstruction: those whose part in the dense "
        "model's outputs the others can take over (no labels); magnitude: small weights; l1: small "
        "sum of absolute weights; batch_norm: small scale in the batch norm (channels); taylor and "
        "fisher: absolute or squared gradient of the loss by a unit's mask (labels)",
    )
    allocation: Literal["auto", "uniform", "global", "optimal"] = Field(
        "auto",
        description="each layer's width. uniform: the same share everywhere (of channels whose "
        "score is 0 first); global: one ranking of score by cost; optimal: a table of measured "
        "change of the predictions by width, and dynamic programming (for channels, whose costs "
        "multiply, step by step by change for saving); auto: optimal for reconstruction, "
        "uniform for magnitude and l1, else global",
    )
    repair: Literal["auto", "none", "mean", "ridge"] = Field(
        "auto",
        description="how removed units are made up for. mean: their mean output goes into "
        "the bias; ridge: the output projection is fitted anew to the dense model's outputs; "
        "auto: ridge for reconstruction, else none",
    )
    batch_norms: Literal["auto", "keep", "estimate"] = Field(
        "auto",
        description="running statistics of batch norms after channels are removed. estimate: "
        "measured anew on the calibration rows; auto: estimate for repair mean, else keep",
    )
    follow_dense: bool = Field(
        True,
        description="the repair's target is the dense model's residual stream, so that a layer "
        "makes up for the layers before; otherwise what the layer itself put out",
    )
    multiple_of: int = Field(
        1,
        ge=1,
        description="neurons or channels of a layer come in multiples of this (8 or 16 for speed)",
    )
    min_heads: int = Field(0, ge=0, description="heads that every layer keeps")
    min_neurons: int = Field(0, ge=0, description="neurons that every layer keeps")
    min_channels: int = Field(1, ge=1, description="channels that every convolution keeps")
    rounds: int = Field(
        1, ge=1, description="reach the budget in so many rounds, with recovery in between"
    )
    output_importance: float = Field(
        0.5,
        ge=0,
        le=1,
        strict=False,
        description="how much directions of a layer's output count by how far they move the "
        "logits: exponent of the Fisher matrix's eigenvalues, 0 treats all alike",
    )
    token_importance: float = Field(
        0.8,
        ge=0,
        le=1,
        strict=False,
        description="how much tokens count by how far they move the logits; 0 treats all alike",
    )
    damping: float = Field(
        0.01,
        ge=0,
        strict=False,
        description="added to each Gram matrix's diagonal, as a share of its mean",
    )
    calibration_rows: int | None = Field(
        None, ge=1, description="rows of the calibration data to use; default: all"
    )
    table_rows: int = Field(
        512, ge=1, description="rows on which allocation 'optimal' measures predictions"
    )
    batch_size: int = Field(1, ge=1, description="of the forward pass that is timed")
    length: int | None = Field(
        None, ge=1, description="tokens of the forward pass that is counted and timed; default: "
        "the calibration rows' mean"
    )  # fmt: skip
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the forward pass that is timed"
    )
    seed: int = Field(0, ge=0, description="of the random directions of importance")
    dry_run: bool = Field(False, description="only report what would be removed")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1 or not (given or self.layers):
            raise ValueError(
                f"give one budget of {', '.join(BUDGETS)} (or layers alone), "
                f"not {' and '.join(given) or 'none'}"
            )
        if not (self.heads or self.neurons or self.channels):
            raise ValueError(
                "heads, neurons and channels are all false: nothing can be removed; "
                "set one of them to true"
            )
        if self.allocation == "global" and self.score == "reconstruction":
            raise ValueError(
                "allocation global ranks scores, and reconstruction has none that compare "
                "between layers; write allocation: optimal"
            )
        if self.dry_run and self.rounds > 1:
            raise ValueError("dry_run previews one round; write rounds: 1")
        return self

    @property
    def budget(self) -> str | None:
        """The name of the budget that is given."""
        return next((name for name in BUDGETS if getattr(self, name) is not None), None)

    @property
    def resolved_allocation(self) -> str:
        """``allocation`` with auto resolved."""
        if self.allocation != "auto":
            return self.allocation
        known = {"reconstruction": "optimal", "magnitude": "uniform", "l1": "uniform"}
        return known.get(self.score, "global")

    @property
    def resolved_repair(self) -> str:
        """``repair`` with auto resolved."""
        if self.repair != "auto":
            return self.repair
        return "ridge" if self.score == "reconstruction" else "none"

    @property
    def resolved_batch_norms(self) -> str:
        """``batch_norms`` with auto resolved."""
        if self.batch_norms != "auto":
            return self.batch_norms
        return "estimate" if self.resolved_repair == "mean" else "keep"

    @property
    def uses_moments(self) -> bool:
        """Whether statistics of the output projections' inputs are needed."""
        return self.score == "reconstruction" or self.resolved_repair != "none"

    @property
    def needs_calibration(self) -> bool:
        """Whether `shrink` needs calibration data for this config."""
        return (
            self.score not in ("magnitude", "l1", "batch_norm")
            or self.resolved_repair != "none"
            or self.resolved_allocation == "optimal"
            or self.resolved_batch_norms == "estimate"
            or self.layers is not None
        )
