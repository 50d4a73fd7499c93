"""``TeacherLoss``: what a frozen teacher adds to a student's loss."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from hfcompress.architectures import blocks
from hfcompress.distillation.config import DistillationConfig
from hfcompress.distillation.losses import hidden_state_loss, kl_divergence, logits_mse
from hfcompress.errors import ModelError


class TeacherLoss:
    """Runs the teacher on a batch and compares it with the student's outputs.

    An object of this class can be called as ``terms(model, inputs, outputs)``, after the student
    ran on the inputs, and gives one scalar for each term, weight included. Hidden states are read
    by hooks on the student's layers; used as a context manager, it removes them at the end::

        with TeacherLoss(student, teacher, DistillationConfig(hidden_weight=1.0)) as terms:
            PruningTrainer(student, args, loss_terms=terms, ...).train()

    Args:
        student: the model that trains.
        teacher: the model to follow; it is put into evaluation mode, and never changed.
        config: which terms, and their weights.

    Raises:
        ModelError: hidden states are to be compared, and the two have no layers, or not as many.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, config: DistillationConfig) -> None:
        self.config = config
        self.teacher = teacher.eval().requires_grad_(False)
        self._of_student = _HiddenStates()
        self._of_teacher = _HiddenStates()
        if config.hidden_weight:
            self._of_student.watch(student)
            self._of_teacher.watch(teacher)
            if len(self._of_student) != len(self._of_teacher):
                raise ModelError(
                    f"hidden states can be compared layer by layer only; the student has "
                    f"{len(self._of_student)} layers and the teacher {len(self._of_teacher)}"
                )

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], outputs: Any
    ) -> dict[str, Tensor]:
        """The terms of one batch.

        Args:
            model: the student; unused, its outputs and hooks say all.
            inputs: what the student was given; labels are not shown to the teacher.
            outputs: what the student gave, with ``logits``.
        """
        shown = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad(), self._precision(outputs.logits.device):
            taught = self.teacher(**shown).logits
        student, teacher = outputs.logits.float(), taught.float()
        terms: dict[str, Tensor] = {}
        if self.config.soft_weight:
            divergence = kl_divergence(student, teacher, self.config.temperature)
            terms["soft_loss"] = self.config.soft_weight * divergence
        if self.config.logits_weight:
            terms["logits_loss"] = self.config.logits_weight * logits_mse(student, teacher)
        if self.config.hidden_weight:
            distance = self._hidden_distance(inputs.get("attention_mask"))
            terms["hidden_loss"] = self.config.hidden_weight * distance
        return terms

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._of_student.close()
        self._of_teacher.close()

    def _hidden_distance(self, mask: Tensor | None) -> Tensor:
        pairs = zip(self._of_student.take(), self._of_teacher.take(), strict=True)
        distances = [
            hidden_state_loss(
                student.float(), teacher.float(), mask, distance=self.config.hidden_distance
            )
            for student, teacher in pairs
        ]
        return torch.stack(distances).sum()

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.config.teacher_precision == "bf16":
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()


class _HiddenStates:
    """The last outputs of a model's layers, read by forward hooks."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._states: dict[int, Tensor] = {}

    def watch(self, model: nn.Module) -> None:
        layers = blocks(model)
        if not layers:
            raise ModelError(
                f"{type(model).__name__} has no repeated layers whose hidden states could be "
                "compared; set hidden_weight to 0"
            )
        for number, layer in enumerate(layers.values()):
            self._handles.append(layer.register_forward_hook(self._hook(number)))

    def take(self) -> list[Tensor]:
        """The states in layer order; they are handed out once."""
        states, self._states = self._states, {}
        return [states[number] for number in sorted(states)]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._states = [], {}

    def __len__(self) -> int:
        return len(self._handles)

    def _hook(self, number: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._states[number] = output[0] if isinstance(output, tuple) else output

        return keep
