"""Teachers of every kind behind one question: a model, a plain function, kept outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from hfcompress.distillation.cached_casts import KeptCasts
from hfcompress.distillation.layer_outputs import LayerWatch
from hfcompress.distillation.losses import Task
from hfcompress.distillation.teacher_outputs import ROW, Inputs, TeacherOutputs, teacher_inputs
from hfcompress.errors import ConfigError, DataError, ModelError

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


class _ModelTeacher:
    """A model in evaluation mode, on the batch's device."""

    def __init__(self, model: nn.Module, watch: LayerWatch, precision: str) -> None:
        self.model = model.eval()
        self.watch = watch
        self.precision = precision
        self._casts = KeptCasts(model)
        parameters = inspect.signature(model.forward).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        # A transformers model takes anything and hands it down; it reads what it names.
        takes_all = open_ended and not isinstance(model, PreTrainedModel)
        self._reads = None if takes_all else set(parameters)
        self._home: torch.device | None = None

    def ask(self, inputs: Inputs) -> TeacherOutputs:
        shown = {
            name: value
            for name, value in teacher_inputs(inputs).items()
            if self._reads is None or name in self._reads
        }
        device = next(v.device for v in shown.values() if isinstance(v, Tensor))
        self._place(device)
        with torch.no_grad(), self._autocast(device):
            outputs = self._casts(shown) if self.precision == "bf16" else self.model(**shown)
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
        if self._home is not None:
            self.model.to(self._home)
            self._home = None

    def _place(self, device: torch.device) -> None:
        """Bring the model to the batches, until `close`."""
        spread_out = getattr(self.model, "hf_device_map", None)
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.device != device and not spread_out:
            self._home = self._home or parameter.device
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


_OF_PROBLEM: dict[str, Task] = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


def infer_task(model: nn.Module, label: Any = None) -> Task:
    """The task of a transformers model; classification for any other.

    Args:
        model: the student.
        label: the label of one row, where there is one: several numbers mean several labels.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if name in MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values():
        return "spans"
    if name in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values():
        return "tokens"
    problem = getattr(config, "problem_type", None)
    if problem in _OF_PROBLEM:
        return _OF_PROBLEM[problem]
    if getattr(config, "num_labels", 2) == 1:
        return "regression"
    values = None if label is None else torch.as_tensor(label)
    if values is not None and values.is_floating_point() and values.dim():
        return "multi_label"
    return "classification"


def first_row(dataset: Any) -> Mapping[str, Any]:
    """The first row of a dataset; empty where there is none, or it is no mapping."""
    row = next(iter(dataset), None) if dataset is not None else None
    return row if isinstance(row, Mapping) else {}


def logits_of(outputs: Any) -> Tensor:
    """The logits in a model's outputs, as `Task` has them.

    Args:
        outputs: a tensor of logits, or an object or mapping with ``logits``, or with
            ``start_logits`` and ``end_logits`` for question answering.

    Raises:
        ModelError: there are none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = {name: _entry(outputs, name) for name in ("logits", "start_logits", "end_logits")}
    if found["logits"] is not None:
        return found["logits"]
    if found["start_logits"] is not None and found["end_logits"] is not None:
        return torch.stack([found["start_logits"], found["end_logits"]], dim=1)
    raise ModelError(
        f"outputs of type {type(outputs).__name__} hold no logits; return a tensor, or an object "
        "with 'logits', from the model"
    )


def _entry(outputs: Any, name: str) -> Tensor | None:
    if isinstance(outputs, Mapping):
        return outputs.get(name)
    found: Tensor | None = getattr(outputs, name, None)
    return found
