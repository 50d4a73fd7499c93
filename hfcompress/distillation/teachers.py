"""One ``Teacher`` protocol for models, functions of a batch, and cached outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hfcompress.distillation.cached_casts import CachedCasts
from hfcompress.distillation.layer_outputs import LayerWatch
from hfcompress.distillation.teacher_outputs import ROW, TeacherOutputs, teacher_inputs
from hfcompress.errors import ConfigError, DataError
from hfcompress.inference import call_model, forward_names, logits_in
from hfcompress.training.outputs import Inputs, is_transformers

TeacherFunction = Callable[[Mapping[str, Tensor]], object]


@runtime_checkable
class KeptOutputs(Protocol):
    """Outputs that were computed before, such as a `TeacherCache`."""

    def lookup(self, rows: Tensor) -> TeacherOutputs:
        """Return the outputs for rows of the data, by their numbers."""
        ...


TeacherLike = nn.Module | TeacherFunction | KeptOutputs
"""A model; a function of a batch (with the column ``row`` if the data has it) that returns logits
or `TeacherOutputs`; or kept outputs."""


class Teacher(Protocol):
    """Gives a loss the teacher's outputs for a batch."""

    def ask(self, inputs: Inputs) -> TeacherOutputs:
        """Return the outputs for a batch with all of its columns, without gradients."""
        ...

    def open(self) -> None:
        """Set the hooks that `close` removed."""
        ...

    def close(self) -> None:
        """Remove the hooks and move the teacher back to its device."""
        ...


def as_teacher(
    teacher: TeacherLike,
    precision: Literal["fp32", "bf16"] = "fp32",
    hidden: Collection[int] = (),
    attentions: Collection[int] = (),
    values: Collection[int] = (),
) -> Teacher:
    """Return a `Teacher` for a model, a function or kept outputs.

    Args:
        teacher: the model, function or outputs.
        precision: of a model's forward pass.
        hidden, attentions, values: layers whose outputs to read, as in `LayerWatch`.

    Raises:
        ConfigError: a teacher of another type.
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
        self._casts = CachedCasts(model)
        names, open_ended = forward_names(model)
        # transformers models pass **kwargs down; the named parameters are what they read.
        self._reads = None if open_ended and not is_transformers(model) else names
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
            outputs = (
                self._casts(shown) if self.precision == "bf16" else call_model(self.model, shown)
            )
        states = self.watch.take()
        return TeacherOutputs(
            logits_in(outputs),
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
        """Move the model to the batch's device, until `close`."""
        spread_out = getattr(self.model, "hf_device_map", None)
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.device != device and not spread_out:
            self._home = self._home or parameter.device
            self.model.to(device)

    def _autocast(self, device: torch.device) -> torch.autocast:
        # Disabled explicitly for fp32, because a Trainer may have enabled autocast outside.
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


class _Stateless:
    """A teacher without hooks."""

    def open(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


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
        return TeacherOutputs(logits_in(answer))


class _KeptTeacher(_Stateless):
    """Outputs by row number."""

    def __init__(self, kept: KeptOutputs) -> None:
        self.kept = kept

    def ask(self, inputs: Inputs) -> TeacherOutputs:
        if ROW not in inputs:
            raise DataError(
                f"the train dataset has no column {ROW!r} to look up kept outputs; add it: "
                f"dataset.add_column({ROW!r}, range(len(dataset)))"
            )
        return self.kept.lookup(inputs[ROW].cpu())
