"""The recipe: model + data + steps + an optional grid + what to measure, checked whole.

Nothing is loaded here. A `Recipe` is frozen plain data; `expand` turns it into trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from hfcompress.config import Config, Names, shown
from hfcompress.data.config import DataConfig
from hfcompress.errors import ConfigError
from hfcompress.measure.vectors import EmbeddingConfig
from hfcompress.models.loading import ModelConfig
from hfcompress.recipes.grid import (
    Trial,
    ambiguous_fields,
    apply_override,
    beginnings,
    locate,
    points,
    restore,
)
from hfcompress.recipes.step_configs import STEP_CONFIGS
from hfcompress.recipes.yaml import MAX_BYTES, parse_yaml
from hfcompress.tasks.registry import find_task
from hfcompress.training.tracking import Tracker
from hfcompress.utils import Device, Fields


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

    metric: str | None = Field(
        None, description="metric of the curve; the task's usual one by default"
    )
    also: Names = Field((), description="more metrics, kept in the rows")
    trust_remote_code: bool = Field(
        False,
        description="metric and also may name scripts of evaluate's hub or of a local path, which "
        "are run; --trust-remote-code must allow it, too",
    )
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
    def _one_latency_is_a_list_of_one(cls, data: object) -> object:
        if isinstance(data, Mapping) and isinstance(data.get("latency"), (Mapping, LatencyConfig)):
            data = {**data, "latency": [data["latency"]]}
        return data

    def non_default_fields(self) -> Fields:
        """As `Config.non_default_fields`, without what changes no row, and without the metric that
        was once the default."""
        fields = super().non_default_fields()
        if fields.get("metric") == "accuracy":
            del fields["metric"]
        return {name: fields[name] for name in fields.keys() - {"every_step", "trust_remote_code"}}


Choices = Annotated[tuple[Any, ...], Field(strict=False)]


class ReferenceConfig(Config):
    """Published figures to compare with, by requested sparsity."""

    source: str = Field(description="where the figures come from")
    values: dict[float, float] = Field(
        strict=False, description="requested sparsity -> the published value of the metric, 0 to 1"
    )
    n: int | None = Field(None, ge=1, description="how many examples the figures are of")
    notes: dict[float, str] = Field(
        default_factory=dict, strict=False, description="requested sparsity -> a remark"
    )


class Recipe(Config):
    """A whole recipe.

    Raises:
        ConfigError: anything that does not fit, grid included, as one sentence.
    """

    name: str = Field("recipe", min_length=1, max_length=200, description="names the output folder")
    description: str = Field("", description="what it shows")
    model: ModelConfig = Field(description="which model")
    task: str = Field("text-classification", description="decides the Auto class")
    data: DataConfig = Field(description="which examples")
    steps: tuple[Fields, ...] = Field((), strict=False, description="what is done")
    grid: tuple[dict[str, Choices], ...] = Field(
        (), strict=False, description="fields that vary: every combination is a trial"
    )
    measure: MeasureConfig = Field(default_factory=MeasureConfig, description="what is measured")
    embedding: tuple[EmbeddingConfig, ...] = Field(
        (),
        strict=False,
        description="ways to store an embedding model's vectors, whose loss each row has; one may "
        "stand without a list",
    )
    seed: int = Field(0, ge=0, description="of everything random")
    device: Device | None = Field(
        None,
        description="where models train and predict; calibration, pruning, timing and engines stay "
        "on the processor. By default training alone uses a GPU that is there",
    )
    reference: ReferenceConfig | None = Field(None, description="published figures")
    track: tuple[Tracker, ...] = Field(
        (),
        strict=False,
        description="also log the rows there, a run for each trial, into the run's folder (extras: "
        "track, wandb, mlflow); one may stand without a list",
    )
    save_models: bool = Field(False, description="keep the model of every trial")
    save_sparse: bool = Field(
        False, description="keep them with zeros packed; import hfcompress to load such a model"
    )

    _written: str = PrivateAttr("")

    @property
    def written(self) -> str:
        """The file as it was written, and what ``--set`` has changed; empty where there is none."""
        return self._written

    @model_validator(mode="before")
    @classmethod
    def _one_grid_is_a_list_of_one(cls, data: object) -> object:
        if isinstance(data, Mapping) and isinstance(data.get("grid"), Mapping):
            data = {**data, "grid": [data["grid"]]}
        if isinstance(data, Mapping) and isinstance(data.get("track"), str):
            data = {**data, "track": [data["track"]]}
        if isinstance(data, Mapping) and isinstance(data.get("embedding"), Mapping):
            data = {**data, "embedding": [data["embedding"]]}
        return data

    @field_validator("name")
    @classmethod
    def _stays_inside_the_output_folder(cls, name: str) -> str:
        # Windows' rules on every system: a recipe is shared, and both slashes part folders there.
        path = PureWindowsPath(name)
        if path.anchor or ".." in path.parts or not path.parts or not name.isprintable():
            raise ValueError(
                f"{shown(name)} is not a folder's name; use letters, digits and dashes"
            )
        return name

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        find_task(self.task)
        expand(self)
        if self.save_sparse and not self.save_models:
            raise ValueError("save_sparse says how models are kept; write save_models: true, too")
        return self

    def to_dict(self) -> Fields:
        """The recipe as plain data, every default spelt out.

        Fields that the grid varies keep their value of the steps as written; so do former names
        whose meaning depends on a field that the grid may vary.
        """
        data = super().to_dict()
        first = [{field: values[:1] for field, values in part.items()} for part in self.grid[:1]]
        steps = [step.to_dict() for step in points(self.steps, first, self.seed)[0].steps]
        kept = [
            (place, path)
            for place, step in enumerate(self.steps)
            for name, fields in step.items()
            for path in ambiguous_fields(fields or {}, STEP_CONFIGS[name])
        ]
        for field in dict.fromkeys(field for part in self.grid for field in part):
            if field != "seed":
                place, _, inner = locate(field, self.steps, "grid.")
                kept.append((place, inner.split(".")))
        for place, path in kept:
            ((name, written),) = self.steps[place].items()
            restore(steps[place][name], written or {}, path, STEP_CONFIGS[name])
        data["steps"] = steps
        return data


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    note: Callable[[str], None] = lambda _: None,
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file.
        overrides: ``key=value`` each: ``model=FOLDER``, ``data.path=FILE``,
            ``prune.scope=global``, ``grid.prune.sparsity=[0,0.5]``; the value is YAML.
            A field that the grid varies is taken out of the grid.
        note: receives a sentence for each field that is taken out of the grid.

    Raises:
        ConfigError: no such file, no YAML, or anything in it that does not fit.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(
                f"recipe {str(path)!r} has more than {MAX_BYTES:,} bytes; give a shorter one"
            )
        text = content.decode("utf-8")
    except OSError as error:
        raise ConfigError(
            f"recipe {str(path)!r} cannot be read ({error.strerror}); "
            f"write the path of a YAML file or a name that 'hfcompress recipes' lists"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"recipe {str(path)!r} is not a text file") from None
    data = parse_yaml(text, path.name)
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path.name} must be a mapping with model, data and steps, "
            f"not {type(data).__name__ if data is not None else 'an empty file'}"
        )
    data.setdefault("name", path.stem)
    for override in overrides:
        data, replaced = apply_override(data, override, Recipe.model_fields)
        if replaced:
            note(f"--set {override} replaces the grid's values of {', '.join(replaced)}")
    recipe = parse_recipe(data, path.name)
    changes = "".join(f"# --set {override}\n" for override in overrides)
    recipe._written = f"{text.rstrip()}\n{changes}"
    return recipe


def parse_recipe(data: Mapping[str, object], where: str = "recipe") -> Recipe:
    """Check plain data as a recipe.

    Raises:
        ConfigError: anything that does not fit.
    """
    return Recipe.from_dict(data, where)


def expand(recipe: Recipe) -> list[Trial]:
    """Expand a recipe to its trials: one without a grid; with ``measure.every_step`` the dense
    model and what each step leaves.

    Raises:
        ConfigError: a grid field that does not exist, or a value that does not fit.
    """
    trials = points(recipe.steps, recipe.grid, recipe.seed)
    return beginnings(recipe.steps, trials) if recipe.measure.every_step else trials
