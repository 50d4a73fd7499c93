"""``PruningConfig``: what to prune, by which method, how much."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from hfcompress.config import Config, StepConfig
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


class AlpsConfig(Config):
    """Settings of method alps; the defaults are those of the published results."""

    iterations: int = Field(45, ge=1, description="ADMM steps, at most")
    damping: float = Field(
        0.03,
        ge=0,
        strict=False,
        description="added to each Gram matrix's diagonal, as a share of its mean",
    )
    output_importance: float = Field(
        0.5,
        ge=0,
        le=1,
        strict=False,
        description="preference for outputs that move the model's logits: exponent of the mean "
        "squared gradient; 0 treats all outputs alike",
    )
    token_importance: float = Field(
        0.8,
        ge=0,
        le=1,
        strict=False,
        description="preference for tokens that move the model's logits: weight of each token's "
        "share of the squared gradient; 0 treats all tokens alike, as do dense statistics",
    )


class SparseGPTConfig(Config):
    """Settings of method sparsegpt.

    Other methods than alps read ``damping`` and ``token_importance`` from here, too, where they
    use moments: for ``allocation: optimal`` and bias repair.
    """

    block_size: int = Field(128, ge=1, description="columns that are chosen together")
    damping: float = Field(
        0.01,
        ge=0,
        strict=False,
        description="added to each Gram matrix's diagonal, as a share of its mean",
    )
    output_importance: float = Field(
        0.0, ge=0, le=1, strict=False, description="as alps.output_importance"
    )
    token_importance: float = Field(
        0.0, ge=0, le=1, strict=False, description="as alps.token_importance"
    )


class ObertConfig(Config):
    """Settings of method obert."""

    block: int = Field(50, ge=1, description="weights in a block of the Fisher matrix")
    damping: float = Field(1e-7, gt=0, strict=False, description="lambda of the Fisher matrix")


class OwlConfig(Config):
    """Settings of allocation owl."""

    multiple: float = Field(
        5.0, gt=0, strict=False, description="scores above so many means are outliers"
    )
    spread: float = Field(
        0.08,
        gt=0,
        lt=1,
        strict=False,
        description="largest distance of a layer's sparsity from the mean",
    )


class OptimalConfig(Config):
    """Settings of allocation optimal."""

    max_sparsity: float = Field(
        0.98, gt=0, lt=1, strict=False, description="largest sparsity of a layer"
    )


_GROUPS = ("alps", "sparsegpt", "obert", "owl", "optimal")
_OF_THE_SOLVER = ("damping", "output_importance", "token_importance")
"""Fields that alps and sparsegpt each have, with defaults of their own."""


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
    allocation: Literal["auto", "uniform", "owl", "optimal"] = Field(
        default="auto",
        description="the layers' sparsities: all the same; less for layers with outliers (OWL); "
        "or of least estimated change of the model's output (dynamic programming); auto: optimal "
        "for alps without an N:M pattern and without scope global, else uniform",
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
    recomputations: int = Field(
        default=1,
        ge=1,
        description="for taylor, fisher and obert: prune in so many steps and collect the "
        "gradients anew before each (oBERT: 8 to 32)",
    )
    alps: AlpsConfig = Field(default_factory=AlpsConfig, description="settings of method alps")
    sparsegpt: SparseGPTConfig = Field(
        default_factory=SparseGPTConfig, description="settings of method sparsegpt"
    )
    obert: ObertConfig = Field(default_factory=ObertConfig, description="settings of method obert")
    owl: OwlConfig = Field(default_factory=OwlConfig, description="settings of allocation owl")
    optimal: OptimalConfig = Field(
        default_factory=OptimalConfig, description="settings of allocation optimal"
    )
    activation_memory: int = Field(
        default=1024,
        ge=0,
        description="megabytes of activations to keep in memory; more go to a temporary file",
    )
    seed: int = Field(default=0, ge=0, description="of method random and of output importance")

    former_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "iterations": ("alps.iterations",),
        "block_size": ("sparsegpt.block_size",),
        **{name: (f"alps.{name}", f"sparsegpt.{name}") for name in _OF_THE_SOLVER},
        "fisher_block": ("obert.block",),
        "fisher_damping": ("obert.damping",),
        "owl_multiple": ("owl.multiple",),
        "owl_spread": ("owl.spread",),
        "max_sparsity": ("optimal.max_sparsity",),
        "output_coupling": (),
    }

    @model_validator(mode="before")
    @classmethod
    def _read_former_fields(cls, data: object) -> object:
        """Move the flat spelling of earlier versions into the groups."""
        former = [name for name in cls.former_fields if isinstance(data, Mapping) and name in data]
        if not isinstance(data, Mapping) or not former:
            return data
        data, written = dict(data), []
        for name in former:
            value = data.pop(name)
            if name == "output_coupling":
                if value != 0:
                    raise ValueError("output_coupling was removed; leave it out")
                written.append("nothing instead of output_coupling")
                continue
            path = _current_path(cls.former_fields[name], data.get("method"))
            group, _, field = path.partition(".")
            data[group] = _with_field(data.get(group), group, field, value, name)
            written.append(f"{path} instead of {name}")
        warnings.warn(
            f"PruningConfig: write {', '.join(written)}; "
            "the former names will be removed in the next release",
            FutureWarning,
            stacklevel=4,
        )
        return data

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, text: str) -> str:
        Pattern.parse(text)
        return text

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        pattern, allocates = self.parsed_pattern, self.allocation in ("owl", "optimal")
        if self.sparsity is None and not pattern.group:
            raise ValueError("sparsity is missing; write a share such as sparsity: 0.5")
        fixed = 1 - pattern.keep / pattern.group if pattern.group else None
        if fixed is not None and self.sparsity is not None and abs(fixed - self.sparsity) > 1e-6:
            raise ValueError(
                f"pattern {self.pattern} makes sparsity {fixed:g}, not {self.sparsity:g}; "
                f"leave sparsity out"
            )
        if fixed is not None and (self.scope in ("row", "global") or allocates):
            raise ValueError(
                f"pattern {self.pattern} fixes each layer's sparsity; "
                f"leave scope and allocation at their defaults"
            )
        if fixed is not None and self.recomputations > 1:
            raise ValueError(
                f"pattern {self.pattern} cannot be reached in steps; leave recomputations out"
            )
        tokens_differ = self.method != "alps" and self.sparsegpt.token_importance > 0
        if tokens_differ and self.resolved_statistics == "dense":
            raise ValueError("token_importance needs statistics: sequential")
        if self.augmented_rows and self.method in GRADIENT_METHODS:
            raise ValueError(
                f"augmented_rows are text without labels and method {self.method} needs labels; "
                f"leave augmented_rows out"
            )
        if self.scope == "global" and allocates:
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
    def solver(self) -> AlpsConfig | SparseGPTConfig:
        """The group whose damping and importances apply."""
        return self.alps if self.method == "alps" else self.sparsegpt

    @property
    def resolved_sparsity(self) -> float:
        """``sparsity``; an N:M pattern's own where none is given."""
        if self.sparsity is not None:
            return self.sparsity
        return 1 - self.parsed_pattern.keep / self.parsed_pattern.group

    @property
    def resolved_scope(self) -> Literal["row", "layer", "global"]:
        """``scope`` with auto resolved."""
        if self.scope != "auto":
            return self.scope
        if self.method == "wanda" and self.parsed_pattern.unstructured:
            return "row"
        fixed = bool(self.parsed_pattern.group) or self.resolved_allocation != "uniform"
        return "global" if self.method == "lamp" and not fixed else "layer"

    @property
    def resolved_allocation(self) -> Literal["uniform", "owl", "optimal"]:
        """``allocation`` with auto resolved."""
        if self.allocation != "auto":
            return self.allocation
        free = not self.parsed_pattern.group and self.scope != "global"
        return "optimal" if self.method == "alps" and free else "uniform"

    @property
    def resolved_token_importance(self) -> float:
        """``token_importance`` of the method; 0 with dense statistics."""
        sequential = self.resolved_statistics == "sequential"
        return self.solver.token_importance if sequential else 0.0

    @property
    def resolved_bias_repair(self) -> bool:
        """``bias_repair`` with the default resolved."""
        return self.method == "alps" if self.bias_repair is None else self.bias_repair

    @property
    def resolved_statistics(self) -> Literal["sequential", "dense"]:
        """``statistics`` with auto resolved."""
        if self.statistics != "auto":
            return self.statistics
        sequential = self.method in RECONSTRUCTING or self.resolved_bias_repair
        return "sequential" if sequential else "dense"

    @property
    def resolved_reference(self) -> Literal["weights", "outputs"]:
        """``reference`` with auto resolved."""
        if self.reference != "auto":
            return self.reference
        sequential = self.resolved_statistics == "sequential"
        return "outputs" if self.method == "alps" and sequential else "weights"

    @property
    def needs_inputs(self) -> bool:
        """Whether `prune` needs statistics of the layers' inputs."""
        allocates = self.resolved_allocation != "uniform"
        return self.method in MOMENT_METHODS or self.resolved_bias_repair or allocates

    @property
    def needs_calibration(self) -> bool:
        """Whether `prune` needs calibration data for this config."""
        return self.method in GRADIENT_METHODS or self.needs_inputs

    def non_default_fields(self) -> dict[str, object]:
        """As `Config.non_default_fields`, in the flat names that hashes were made of.

        Fields that depend on the method are hashed as resolved, against their former defaults.
        """
        fields = super().non_default_fields()
        for group in (*_GROUPS, "allocation"):
            fields.pop(group, None)
        unused = self.method != "alps" and self.alps == AlpsConfig()
        hashed = {
            "allocation": (self.resolved_allocation, "uniform"),
            "output_importance": (self.solver.output_importance, 0.0),
            "token_importance": (self.resolved_token_importance, 0.0),
            "damping": (self.solver.damping, 0.01),
            "block_size": (self.sparsegpt.block_size, 128),
            "iterations": (60 if unused else self.alps.iterations, 60),
            "fisher_block": (self.obert.block, 50),
            "fisher_damping": (self.obert.damping, 1e-7),
            "owl_multiple": (self.owl.multiple, 5.0),
            "owl_spread": (self.owl.spread, 0.08),
            "max_sparsity": (self.optimal.max_sparsity, 0.98),
        }
        return fields | {name: value for name, (value, former) in hashed.items() if value != former}


def _current_path(paths: tuple[str, ...], method: object) -> str:
    """Where a former field is now: alps has its own, all other methods share sparsegpt's."""
    return paths[0] if method == "alps" else paths[-1]


def _with_field(group: object, name: str, field: str, value: object, former: str) -> object:
    """The data of a group with one more field."""
    if group is None:
        return {field: value}
    if isinstance(group, Config):  # `Config.replace`: the change comes last
        return {**{key: getattr(group, key) for key in type(group).model_fields}, field: value}
    if not isinstance(group, Mapping):
        return group  # refused as what it is
    if field in group:
        raise ValueError(
            f"{former} is the former name of {name}.{field}, which is given, too; "
            f"leave {former} out"
        )
    return {**group, field: value}
