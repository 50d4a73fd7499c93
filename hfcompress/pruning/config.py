"""``PruningConfig``: what to prune, by which method, how much."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from hfcompress.config import StepConfig
from hfcompress.pruning.patterns import Pattern

Method = Literal[
    "magnitude", "lamp", "random", "wanda", "sparsegpt", "alps", "taylor", "fisher", "obert"
]
GRADIENT_METHODS = frozenset({"taylor", "fisher", "obert"})
"""Methods that need labelled calibration batches."""
MOMENT_METHODS = frozenset({"wanda", "sparsegpt", "alps"})
"""Methods that need the moments of each layer's inputs."""
RECONSTRUCTING = frozenset({"sparsegpt", "alps"})
"""Methods that change the kept weights to reproduce a layer's outputs."""


class PruningConfig(StepConfig):
    """One-shot unstructured pruning; the argument of `prune` and a recipe's ``prune`` step.

    Raises:
        ConfigError: an unknown field, a wrong type, a value out of range, or fields that
            contradict each other.
    """

    step_name = "prune"
    compresses = True
    calibrates = True

    method: Method = Field(
        default="magnitude",
        description="importance of a weight. magnitude: its absolute value; lamp: that relative "
        "to the layer's larger weights; random; wanda: times the norm of its input; sparsegpt "
        "and alps: by what the layer can make up for, updating the kept weights; taylor and "
        "fisher: by gradients of the loss; obert: by the block Fisher, updating the kept weights",
    )
    sparsity: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        strict=False,
        description="share of the target weights to set to zero, [0, 1); an N:M pattern fixes it",
    )
    pattern: str = Field(
        default="unstructured",
        description="where zeros may be: 'unstructured'; 'N:M' keeps N of every M consecutive "
        "inputs ('2:4'); 'RxC' drops blocks of R outputs and C inputs ('16x1')",
    )
    scope: Literal["auto", "row", "layer", "global"] = Field(
        default="auto",
        description="which weights compete: those of one output (row), of one layer, or of all "
        "layers (one threshold); auto: row for wanda, global for lamp, else layer",
    )
    allocation: Literal["uniform", "owl", "optimal"] = Field(
        default="uniform",
        description="the layers' sparsities: all the same; less for layers with outliers (OWL); "
        "or of least estimated change of the model's output (dynamic programming)",
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
    bias_repair: bool | None = Field(
        default=None,
        description="set each bias so that the layer's mean output is unchanged; "
        "default: for alps only",
    )
    statistics: Literal["auto", "sequential", "dense"] = Field(
        default="auto",
        description="where a layer's input statistics come from: sequential, the model as pruned "
        "so far; dense, the model before (one pass, shared by a sweep); auto: sequential for "
        "sparsegpt, alps and bias repair, else dense",
    )
    reference: Literal["auto", "weights", "outputs"] = Field(
        default="auto",
        description="what sparsegpt and alps reproduce: the dense layer on the pruned model's "
        "inputs (weights), or what the layer puts out in the dense model (outputs), which also "
        "repairs the layers before; auto: outputs for alps, weights for sparsegpt",
    )
    output_importance: float = Field(
        default=0.0,
        ge=0,
        le=1,
        strict=False,
        description="how much sparsegpt and alps prefer outputs that move the model's logits: "
        "exponent of the mean squared gradient, 0 treats all outputs alike",
    )
    output_coupling: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        strict=False,
        description="how far alps lets errors of a layer's outputs cancel each other in the "
        "model's logits (K-FAC): weight of the outputs' mean product of gradients against the "
        "identity, 0 reproduces each output for itself; needs some thousand calibration rows",
    )
    token_importance: float = Field(
        default=0.0,
        ge=0,
        le=1,
        strict=False,
        description="how much sparsegpt and alps prefer tokens that move the model's logits: "
        "weight of each token's share of the squared gradient, 0 treats all tokens alike",
    )
    calibration_rows: int | None = Field(
        default=None, ge=1, description="rows of the calibration data to use; default: all"
    )
    augmented_rows: int = Field(
        default=0,
        ge=0,
        description="rows of new text that a recipe calibrates on besides calibration_rows: "
        "training texts corrupted and recombined. A model is surer of its training texts than "
        "of new ones, and those are where its prediction changes first",
    )
    damping: float = Field(
        default=0.01,
        ge=0,
        strict=False,
        description="added to each Gram matrix's diagonal, as a share of its mean",
    )
    block_size: int = Field(
        default=128, ge=1, description="columns that sparsegpt chooses together"
    )
    iterations: int = Field(default=60, ge=1, description="ADMM steps of alps, at most")
    recomputations: int = Field(
        default=1,
        ge=1,
        description="for taylor, fisher and obert: prune in so many steps and collect the "
        "gradients anew before each (oBERT: 8 to 32)",
    )
    fisher_block: int = Field(
        default=50, ge=1, description="weights in a block of obert's Fisher matrix"
    )
    fisher_damping: float = Field(
        default=1e-7, gt=0, strict=False, description="lambda of obert's Fisher matrix"
    )
    owl_multiple: float = Field(
        default=5.0, gt=0, strict=False, description="OWL: scores above so many means are outliers"
    )
    owl_spread: float = Field(
        default=0.08,
        gt=0,
        lt=1,
        strict=False,
        description="OWL: largest distance of a layer's sparsity from the mean",
    )
    max_sparsity: float = Field(
        default=0.98,
        gt=0,
        lt=1,
        strict=False,
        description="largest sparsity that allocation 'optimal' gives a layer",
    )
    activation_memory: int = Field(
        default=1024,
        ge=0,
        description="megabytes of activations to keep in memory; more go to a temporary file",
    )
    seed: int = Field(default=0, ge=0, description="of method random and of output importance")

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, text: str) -> str:
        Pattern.parse(text)
        return text

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        pattern = self.parsed_pattern
        if self.sparsity is None and not pattern.group:
            raise ValueError("sparsity is missing; write a share such as sparsity: 0.5")
        fixed = 1 - pattern.keep / pattern.group if pattern.group else None
        if fixed is not None and self.sparsity is not None and abs(fixed - self.sparsity) > 1e-6:
            raise ValueError(
                f"pattern {self.pattern} makes sparsity {fixed:g}, not {self.sparsity:g}; "
                f"leave sparsity out"
            )
        if fixed is not None and (self.scope in ("row", "global") or self.allocation != "uniform"):
            raise ValueError(
                f"pattern {self.pattern} fixes each layer's sparsity; "
                f"leave scope and allocation at their defaults"
            )
        if fixed is not None and self.recomputations > 1:
            raise ValueError(
                f"pattern {self.pattern} cannot be reached in steps; leave recomputations out"
            )
        if self.output_coupling and self.method != "alps":
            raise ValueError(
                f"output_coupling is for method alps, not {self.method}; leave output_coupling out"
            )
        if self.token_importance and not self.is_sequential:
            raise ValueError("token_importance needs statistics: sequential")
        if self.augmented_rows and self.method in GRADIENT_METHODS:
            raise ValueError(
                f"augmented_rows are text without labels and method {self.method} needs labels; "
                f"leave augmented_rows out"
            )
        if self.scope == "global" and self.allocation != "uniform":
            raise ValueError("scope global is an allocation itself; leave allocation out")
        if self.scope == "row" and not pattern.unstructured:
            raise ValueError(f"scope row does not go with pattern {self.pattern}; leave it out")
        return self

    @property
    def needs_rows(self) -> bool:
        """Whether the step reads training rows."""
        return self.needs_calibration

    @property
    def parsed_pattern(self) -> Pattern:
        """The pattern as numbers."""
        return Pattern.parse(self.pattern)

    @property
    def wanted(self) -> float:
        """The sparsity asked for; an N:M pattern's own where none is given."""
        if self.sparsity is not None:
            return self.sparsity
        return 1 - self.parsed_pattern.keep / self.parsed_pattern.group

    @property
    def competition(self) -> str:
        """``scope`` with auto resolved."""
        if self.scope != "auto":
            return self.scope
        if self.method == "wanda" and self.parsed_pattern.unstructured:
            return "row"
        fixed = bool(self.parsed_pattern.group) or self.allocation != "uniform"
        return "global" if self.method == "lamp" and not fixed else "layer"

    @property
    def repairs_bias(self) -> bool:
        """``bias_repair`` with the default resolved."""
        return self.method == "alps" if self.bias_repair is None else self.bias_repair

    @property
    def is_sequential(self) -> bool:
        """``statistics`` with auto resolved."""
        if self.statistics == "auto":
            return self.method in RECONSTRUCTING or self.repairs_bias
        return self.statistics == "sequential"

    @property
    def follows_outputs(self) -> bool:
        """``reference`` with auto resolved."""
        if self.reference == "auto":
            return self.method == "alps" and self.is_sequential
        return self.reference == "outputs"

    @property
    def needs_calibration(self) -> bool:
        """Whether `prune` needs calibration data for this config."""
        return (
            self.method in GRADIENT_METHODS | MOMENT_METHODS
            or self.repairs_bias
            or self.allocation != "uniform"
        )
