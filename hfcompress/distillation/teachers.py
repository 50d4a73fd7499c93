"""Teachers of every kind behind one question: a model, a plain function, kept outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.distillation.outputs import TeacherOutputs
from hfcompress.distillation.states import LayerWatch
from hfcompress.distillation.tasks import logits_of
from hfcompress.errors import ConfigError, DataError, ModelError

ROW = "row"
"""The column with each row's number in the data; kept outputs are found by it."""

TEACHER_PREFIX = "teacher_"
"""Columns that only the teacher reads, under the name that follows the prefix."""

LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")
"""Columns that no teacher is shown."""

Inputs = Mapping[str, Any]
TeacherFunction = Callable[[Mapping[str, Tensor]], Any]


@runtime_checkable
class KeptOutputs(Protocol):
    """Outputs that were computed before, such as a teacher cache."""

    def lookup(self, rows: Tensor) -> TeacherOutputs:
        """The outputs of some rows of the data, by their numbers."""
        ...


TeacherLike = nn.Module | TeacherFunction | KeptOutputs
"""A model; a function of a batch (``row`` is in it where the data has that column) that returns
logits or `TeacherOutputs`; or kept outputs."""


class Teacher(Protocol):
    """What a loss asks, whatever stands behind it."""

    def ask(self, inputs: Inputs) -> TeacherOutputs:
        """The outputs for a batch with all of its columns; without gradients."""
        ...

    def open(self) -> None:
        """Make ready what `close` took away."""
        ...

    def close(self) -> None:
        """Leave nothing behind on the teacher."""
        ...


def as_teacher(
    teacher: TeacherLike,
    precision: Literal["fp32", "bf16"] = "fp32",
    hidden: Collection[int] = (),
    attentions: Collection[int] = (),
    values: Collection[int] = (),
) -> Teacher:
    """Make a `Teacher` of a model, a function or kept outputs.

    Args:
        teacher: which.
        precision: of a model's forward pass.
        hidden, attentions, values: what a model's layers are to give, as in `LayerWatch`.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(teacher, nn.Module):
        watch = LayerWatch(teacher, hidden, attentions, values)
        return _ModelTeacher(teacher, watch, precision)
    if isinstance(teacher, KeptOutputs):
        return _KeptTeacher(teacher)
    if callable(teacher):
        return _FunctionTeacher(teacher)
    raise ConfigError(
        f"a teacher must be a model, a function or kept outputs, not {type(teacher).__name__}"
    )


def student_inputs(inputs: Inputs) -> dict[str, Any]:
    """A batch without what is for the teacher only."""
    return {
        name: value
        for name, value in inputs.items()
        if name != ROW and not name.startswith(TEACHER_PREFIX)
    }


def teacher_inputs(inputs: Inputs) -> dict[str, Any]:
    """What the teacher reads of a batch: its own columns where it has any; no labels."""
    own = {
        name.removeprefix(TEACHER_PREFIX): value
        for name, value in inputs.items()
        if name.startswith(TEACHER_PREFIX)
    }
    shared = {name: value for name, value in student_inputs(inputs).items() if name not in LABELS}
    return own or shared


def check_labels(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher whose classes are not the student's, in the student's order.

    Names that a config made up (``LABEL_0``) say nothing and fit all of the same number.

    Raises:
        ModelError: the classes differ.
    """
    names = [_label_names(model) for model in (student, teacher)]
    if None in names:
        return
    mine, theirs = names
    assert mine is not None
    assert theirs is not None
    made_up = any(item == [f"LABEL_{n}" for n in range(len(item))] for item in (mine, theirs))
    if len(mine) != len(theirs) or (mine != theirs and not made_up):
        raise ModelError(
            f"the student's labels are {', '.join(mine)} and the teacher's {', '.join(theirs)}; "
            "give both the same labels in the same order (id2label)"
        )


def _label_names(model: nn.Module) -> list[str] | None:
    names = getattr(getattr(model, "config", None), "id2label", None)
    return [str(names[key]) for key in sorted(names, key=int)] if names else None


class _ModelTeacher:
    """A model in evaluation mode, on the batch's device."""

    def __init__(self, model: nn.Module, watch: LayerWatch, precision: str) -> None:
        self.model = model.eval()
        self.watch = watch
        self.precision = precision
        parameters = inspect.signature(model.forward).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        # A transformers model takes anything and hands it down; it reads what it names.
        takes_all = open_ended and not isinstance(model, PreTrainedModel)
        self._reads = None if takes_all else set(parameters)

    def ask(self, inputs: Inputs) -> TeacherOutputs:
        shown = {
            name: value
            for name, value in teacher_inputs(inputs).items()
            if self._reads is None or name in self._reads
        }
        device = next(v.device for v in shown.values() if isinstance(v, Tensor))
        self._place(device)
        with torch.no_grad(), self._autocast(device):
            outputs = self.model(**shown)
        states = self.watch.take()
        return TeacherOutputs(
            logits_of(outputs),
            hidden_states=states.hidden_states,
            attentions=states.attentions,
            values=states.values,
        )

    def open(self) -> None:
        self.watch.open()

    def close(self) -> None:
        self.watch.close()

    def _place(self, device: torch.device) -> None:
        spread_out = getattr(self.model, "hf_device_map", None)
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.device != device and not spread_out:
            self.model.to(device)

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        # fp32 also inside a Trainer's autocast.
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


class _Stateless:
    """A teacher with nothing to set and to remove."""

    def open(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _FunctionTeacher(_Stateless):
    """A function of a batch."""

    def __init__(self, function: TeacherFunction) -> None:
        self.function = function

    def ask(self, inputs: Inputs) -> TeacherOutputs:
        shown = teacher_inputs(inputs)
        if ROW in inputs:
            shown[ROW] = inputs[ROW]
        with torch.no_grad():
            answer = self.function(shown)
        if isinstance(answer, TeacherOutputs):
            return answer
        if hasattr(answer, "__array__") and not isinstance(answer, Tensor):
            return TeacherOutputs(torch.as_tensor(answer))
        return TeacherOutputs(logits_of(answer))


class _KeptTeacher(_Stateless):
    """Outputs by row number."""

    def __init__(self, kept: KeptOutputs) -> None:
        self.kept = kept

    def ask(self, inputs: Inputs) -> TeacherOutputs:
        if ROW not in inputs:
            raise DataError(
                f"the train dataset has no column {ROW!r} to find the kept outputs by; add it: "
                f"dataset.add_column({ROW!r}, range(len(dataset)))"
            )
        return self.kept.lookup(inputs[ROW].cpu())
