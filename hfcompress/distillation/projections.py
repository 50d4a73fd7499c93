"""Learned projections beside a student: in its optimizer and checkpoints, never in the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfcompress.errors import SourceError

PROJECTIONS_FILE = "distillation_projections.safetensors"
"""The file that holds the projections, in each checkpoint folder."""


class ProjectionCallback(TrainerCallback):
    """Does for the projections what a ``Trainer`` does for its model's parameters.

    Args:
        layers: the modules that hold them.
        accelerator: the Trainer's.
    """

    def __init__(self, layers: nn.Module, accelerator: Any) -> None:
        self.layers = layers
        self.accelerator = accelerator

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gradients are complete: average them over the processes."""
        for parameter in self.layers.parameters():
            if parameter.grad is not None and self.accelerator.num_processes > 1:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer has used the gradients."""
        self.layers.zero_grad()


def save_projections(layers: nn.Module, folder: Path) -> None:
    """Write the projections into a checkpoint folder; nothing where there are none."""
    weights = {name: value.contiguous() for name, value in layers.state_dict().items()}
    if weights:
        save_file(weights, folder / PROJECTIONS_FILE)


def load_projections(layers: nn.Module, folder: Path) -> None:
    """Read the projections of a checkpoint folder.

    Raises:
        SourceError: there are projections, and none in the folder.
    """
    if not layers.state_dict():
        return
    path = folder / PROJECTIONS_FILE
    if not path.is_file():
        raise SourceError(
            f"training resumes from {folder}, and {path.name} with its projections is not there; "
            "resume from a checkpoint that was written with the same hidden_weight"
        )
    layers.load_state_dict(load_file(path))
