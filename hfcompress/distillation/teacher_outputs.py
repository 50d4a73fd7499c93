"""``TeacherOutputs``: what a teacher says of a batch, wherever it comes from (torch only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

States = Mapping[int, Tensor]
"""Layer number -> tensor; layers count from 0, as ``architectures.blocks`` lists them."""


@dataclass(frozen=True)
class LayerStates:
    """What the layers of a student or a teacher computed for one batch.

    Only what a loss asks for needs to be there. Rows are padded at the end.

    Attributes:
        hidden_states: after each layer, (batch, tokens, width); of convolutions (batch, channels,
            height, width).
        attentions: attention probabilities of each layer, (batch, heads, tokens, tokens).
        values: value projections of each layer, (batch, tokens, width), heads side by side.
    """

    hidden_states: States = field(default_factory=dict, kw_only=True)
    attentions: States = field(default_factory=dict, kw_only=True)
    values: States = field(default_factory=dict, kw_only=True)

    def to(self, device: torch.device) -> Self:
        """The same tensors on a device, in float32."""

        def moved(states: States) -> States:
            return {layer: state.to(device, torch.float32) for layer, state in states.items()}

        return replace(
            self,
            hidden_states=moved(self.hidden_states),
            attentions=moved(self.attentions),
            values=moved(self.values),
        )


@dataclass(frozen=True)
class TeacherOutputs(LayerStates):
    """A teacher's outputs for one batch: a model's, a function's, or kept in a cache.

    Token dimensions may be longer than the student's batch, or shorter: a cache pads to its own
    longest row.

    Attributes:
        logits: (batch, classes); (batch, tokens, classes) for tokens; (batch, 2, tokens), start
            and end, for question answering; (batch, targets) for regression.
    """

    logits: Tensor

    def to(self, device: torch.device) -> Self:
        """The same tensors on a device, in float32."""
        return replace(super().to(device), logits=self.logits.to(device, torch.float32))


def fit_tokens(tensor: Tensor, tokens: int, *dimensions: int) -> Tensor:
    """Cut a tensor, or pad it with zeros at the end, to the student's number of tokens.

    Args:
        tensor: a teacher's.
        tokens: of the student's batch, padding included.
        dimensions: which ones count tokens.
    """
    for dimension in dimensions:
        missing = tokens - tensor.shape[dimension]
        if missing > 0:
            shape = list(tensor.shape)
            shape[dimension] = missing
            tensor = torch.cat([tensor, tensor.new_zeros(shape)], dimension)
        elif missing < 0:
            tensor = tensor.narrow(dimension, 0, tokens)
    return tensor


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
