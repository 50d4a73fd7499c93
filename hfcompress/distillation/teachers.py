"""Teachers of every kind behind one question: a model, a plain function, kept outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.distillation.batch import ROW, Inputs, teacher_inputs
from hfcompress.distillation.cached_casts import KeptCasts
from hfcompress.distillation.layer_outputs import LayerWatch
from hfcompress.distillation.tasks import logits_of
from hfcompress.distillation.teacher_outputs import TeacherOutputs
from hfcompress.errors import ConfigError, DataError

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
