"""``TeacherOutputs``: a teacher's logits and layer outputs for a batch (torch only)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from hfcompress.training.outputs import LABELS, Inputs

States = Mapping[int, Tensor]
"""Layer number -> tensor; layers count from 0, as ``architectures.blocks`` lists them."""


@dataclass(frozen=True)
class LayerStates:
    """Layer outputs of a student or a teacher for one batch.

    Only outputs that a loss reads are needed. Rows are padded at the end.

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
        """Return the same tensors on a device, in float32."""

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
    """A teacher's outputs for one batch: of a model, a function or a cache.

    Token dimensions may be longer or shorter than the student's, because a cache pads to its own
    longest row.

    Attributes:
        logits: (batch, classes); (batch, tokens, classes) for tokens; (batch, 2, tokens), start
            and end, for spans; (batch, classes, height, width) for pixels; (batch, targets) for
            regression.
    """

    logits: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the same tensors on a device, in float32."""
        return replace(super().to(device), logits=self.logits.to(device, torch.float32))


def fit_tokens(tensor: Tensor, tokens: int, *dimensions: int) -> Tensor:
    """Return a tensor cut, or padded with zeros at the end, to the student's number of tokens.

    Args:
        tensor: the teacher's.
        tokens: tokens of the student's batch, padding included.
        dimensions: the token dimensions.
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


def fit_pixels(tensor: Tensor, student: Tensor) -> Tensor:
    """Return a teacher's logits of pixels on the student's grid, bilinear between its own.

    Args:
        tensor: the teacher's, (batch, classes, height, width).
        student: the student's; only its height and width are read.
    """
    size = (student.shape[-2], student.shape[-1])
    if tensor.shape[-2:] == size:
        return tensor
    return torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False)


ROW = "row"
"""The column with each row's number in the data; cached outputs are looked up by it."""
QUERY = "query"
"""The column with the number of each row's query; passages of one query are compared."""
TEACHER_PREFIX = "teacher_"
"""Prefix of columns that only the teacher reads, under the rest of the name."""


def is_for_teacher(column: str) -> bool:
    """Return whether a column is withheld from the student."""
    return column in (ROW, QUERY) or column.startswith(TEACHER_PREFIX)


def student_inputs(inputs: Inputs) -> dict[str, Tensor]:
    """Return a batch without the columns for the teacher."""
    return {name: value for name, value in inputs.items() if not is_for_teacher(name)}


def teacher_inputs(inputs: Inputs) -> dict[str, Tensor]:
    """Return the teacher's own columns of a batch if it has any, else all but the labels."""
    own = {
        name.removeprefix(TEACHER_PREFIX): value
        for name, value in inputs.items()
        if name.startswith(TEACHER_PREFIX)
    }
    return own or without_labels(student_inputs(inputs))


def without_labels(inputs: Inputs, names: Collection[str] = ()) -> dict[str, Tensor]:
    """Return a batch without its labels.

    Args:
        inputs: the batch.
        names: further columns with labels.
    """
    hidden = {*LABELS, *names}
    return {name: value for name, value in inputs.items() if name not in hidden}
