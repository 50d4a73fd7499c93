"""``TeacherOutputs``: what a teacher says of a batch, wherever it comes from (torch only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

LayerStates = Mapping[int, Tensor]
"""Layer number -> tensor; layers count from 0, as ``architectures.blocks`` lists them."""


@dataclass(frozen=True)
class TeacherOutputs:
    """A teacher's outputs for one batch: a model's, a function's, or kept in a cache.

    Only what a loss asks for needs to be there. Token dimensions may be longer than the student's
    batch (a cache that pads to its own longest row); rows are padded at the end.

    Attributes:
        logits: (batch, classes); (batch, tokens, classes) for tokens; (batch, 2, tokens), start
            and end, for question answering; (batch, targets) for regression.
        hidden_states: after each layer, (batch, tokens, width).
        attentions: attention probabilities of each layer, (batch, heads, tokens, tokens).
        values: value projections of each layer, (batch, tokens, width), heads side by side.
    """

    logits: Tensor
    hidden_states: LayerStates = field(default_factory=dict)
    attentions: LayerStates = field(default_factory=dict)
    values: LayerStates = field(default_factory=dict)

    def to(self, device: torch.device) -> TeacherOutputs:
        """The same outputs on a device, in float32."""

        def moved(states: LayerStates) -> LayerStates:
            return {layer: state.to(device, torch.float32) for layer, state in states.items()}

        return replace(
            self,
            logits=self.logits.to(device, torch.float32),
            hidden_states=moved(self.hidden_states),
            attentions=moved(self.attentions),
            values=moved(self.values),
        )
