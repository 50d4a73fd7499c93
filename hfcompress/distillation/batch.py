"""Whom each column of a batch is for: the student, its teacher, the loss (torch only)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ROW = "row"
"""The column with each row's number in the data; kept outputs are found by it."""

TEACHER_PREFIX = "teacher_"
"""Columns that only the teacher reads, under the name that follows the prefix."""

LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")
"""Columns that no teacher is shown."""

Inputs = Mapping[str, Any]


def is_for_teacher(column: str) -> bool:
    """Whether the student is not shown a column."""
    return column == ROW or column.startswith(TEACHER_PREFIX)


def student_inputs(inputs: Inputs) -> dict[str, Any]:
    """A batch without what is for the teacher only."""
    return {name: value for name, value in inputs.items() if not is_for_teacher(name)}


def teacher_inputs(inputs: Inputs) -> dict[str, Any]:
    """What the teacher reads of a batch: its own columns where it has any; no labels."""
    own = {
        name.removeprefix(TEACHER_PREFIX): value
        for name, value in inputs.items()
        if name.startswith(TEACHER_PREFIX)
    }
    return own or without_labels(student_inputs(inputs))


def without_labels(inputs: Inputs) -> dict[str, Any]:
    """A batch without its labels."""
    return {name: value for name, value in inputs.items() if name not in LABELS}


def labels_of(inputs: Inputs) -> Tensor | None:
    """The labels as `losses.hard_loss` takes them."""
    if "start_positions" in inputs and "end_positions" in inputs:
        return torch.stack([inputs["start_positions"], inputs["end_positions"]], dim=1)
    return next((inputs[name] for name in LABELS if name in inputs), None)
