"""``DataConfig``: which examples to read, and what their columns mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import Field, model_validator

from hfcompress.config import Config, Names, Values

# The names that columns usually have, the first that is there is taken.
TEXT_COLUMNS = ("text", "sentence", "content", "review")
IMAGE_COLUMNS = ("image", "img", "pixel_values", "image_path", "path", "file_name", "filename",
                 "filepath", "file")  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "category", "class")
# Columns of numbers, where no column has one of the names above.
SCORE_COLUMNS = ("score", "similarity", "similarity_score", "relatedness")

Problem: TypeAlias = Literal["classes", "sets", "numbers"]
Labels: TypeAlias = Values | dict[str | int, str | int | None] | None


class DataConfig(Config):
    """Which examples to read, and what their columns mean; a path alone is enough."""

    path: str = Field(description="hub name, local file or folder, or pkg://PACKAGE/PATH")
    name: str | None = Field(None, description="configuration on the hub, such as sst2 of glue")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    text: str | Names | None = Field(
        None, description="text column, or two of them for sentence pairs"
    )
    image: str | None = Field(None, description="image column")
    label: str | Names | None = Field(
        None,
        description="label column; or several, of labels that are true or false, or of numbers",
    )
    problem: Problem | None = Field(
        None,
        description="what the label column holds: classes, sets of labels, numbers; by its values "
        "by default",
    )
    range: Values | None = Field(
        None, description="least and greatest number that a label of problem: numbers may be"
    )
    labels: Labels = Field(
        None,
        description="label values in order, rows with others are dropped; or a mapping of label "
        "values to names of the model's classes, null drops their rows",
    )
    train: str = Field("train", description="split to train and calibrate on")
    eval: str = Field("validation", description="split to measure on")
    eval_fraction: float = Field(
        0.2, gt=0, lt=1, description="share measured on, where the data has one split only"
    )
    choose: float | None = Field(
        None, gt=0, lt=1,
        description="share of the training side that candidates are chosen on, which no step "
        "trains or calibrates on; compress takes 0.1 by default",
    )  # fmt: skip
    group: str | None = Field(
        None, description="column whose values never stand on both sides of a split"
    )
    skip_unreadable: bool = Field(
        False, description="leave out and count images that cannot be read, not refuse them"
    )
    max_length: int | None = Field(
        None, ge=2, description="longest token sequence, cut beyond; the model's limit by default"
    )
    overflow: Literal["windows", "cut"] = Field(
        "windows",
        description="texts longer than max_length where each token is answered for: read in "
        "windows, or cut and counted",
    )
    stride: int | None = Field(
        None, ge=0,
        description="tokens that two windows of a text share; a quarter of max_length by default",
    )  # fmt: skip
    max_train: int | None = Field(None, ge=1, description="at most so many training rows")
    max_eval: int | None = Field(None, ge=1, description="at most so many measured rows")
    seed: int = Field(0, ge=0, description="of the split and of the limits' choice of rows")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: object) -> object:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_modality(self) -> DataConfig:
        if self.range is not None and (
            len(self.range) != 2 or not all(isinstance(end, (int, float)) for end in self.range)
        ):
            raise ValueError(f"range is two numbers, such as [0, 5], not {list(self.range)}")
        if self.text is not None and self.image is not None:
            raise ValueError("text and image cannot both be set; keep the one the task reads")
        if isinstance(self.labels, Mapping):
            if not self.labels:
                raise ValueError("labels is an empty mapping; map label values to classes")
        elif self.labels is not None and len(set(map(str, self.labels))) < 2:
            raise ValueError(f"labels needs at least two different values, not {list(self.labels)}")
        return self
