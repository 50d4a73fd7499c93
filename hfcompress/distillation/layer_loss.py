"""``LayerLoss``: losses between a student's layers and those of its teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfcompress.distillation.config import TeacherTermsConfig
from hfcompress.distillation.layer_losses import (
    attention_loss,
    hidden_state_loss,
    is_map,
    on_one_grid,
    same_kind,
    value_relation_loss,
    width_of,
)
from hfcompress.distillation.teacher_outputs import LayerStates, States, fit_tokens
from hfcompress.errors import ModelError


class Projection(nn.Module):
    """A learned linear map from the student's width to the teacher's, the same at every position.

    It is the regressor of FitNets (1412.6550) as a 1x1 convolution. It is not an ``nn.Linear``, so
    that code that collects a model's Linear layers does not find it.
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(teacher_width, student_width))
        nn.init.orthogonal_(self.weight)

    def forward(self, states: Tensor) -> Tensor:
        """Map (..., student width) to (..., teacher width)."""
        return nn.functional.linear(states, self.weight)


class VectorProjection(Projection):
    """A learned map of vectors that keeps their cosines where the teacher's are wider.

    Its columns (rows, where the teacher's vectors are narrower) are orthonormal: the Q of a QR
    decomposition. So a student keeps what it has learned when the map is left behind.
    """

    def forward(self, states: Tensor) -> Tensor:
        """Map (texts, student size) to (texts, teacher size)."""
        tall = self.weight if self.weight.shape[0] >= self.weight.shape[1] else self.weight.T
        basis, scale = torch.linalg.qr(tall)
        basis = basis * scale.diagonal().sign()  # signs of a QR decomposition are arbitrary
        kept = basis if tall is self.weight else basis.T
        return nn.functional.linear(states, kept)


class LayerLoss(nn.Module):
    """The losses on hidden states, attention maps and value relations.

    Args:
        config: the terms, and the distance of hidden states.
        layer_map: student's layer -> teacher's layer, from 0.
        heads: relation heads of the value relation.

    Attributes:
        projections: by the student's layer, for layers whose width differs from the teacher's.
        vectors: of an embedding model's vectors, likewise; None for vectors of one size.
    """

    def __init__(
        self, config: TeacherTermsConfig, layer_map: dict[int, int], heads: int | None = None
    ) -> None:
        super().__init__()
        self.config, self.layer_map, self.heads = config, layer_map, heads
        self.projections = nn.ModuleDict()
        self.vectors: VectorProjection | None = None

    def add_projections(self, student: LayerStates, teacher: LayerStates) -> None:
        """Add a projection for each mapped layer that differs from its teacher's.

        Layers differ in width, or one gives a feature map and the other tokens.

        Args:
            student: hidden states of any batch.
            teacher: hidden states of any batch.
        """
        if not self.config.hidden_weight or self.config.hidden_distance == "attention_transfer":
            return
        self.projections.clear()
        for own, other in self.layer_map.items():
            mine = _state(student.hidden_states, own, "student", "hidden state")
            theirs = _state(teacher.hidden_states, other, "teacher", "hidden state")
            widths = width_of(mine), width_of(theirs)
            # Features of different families do not correspond, even for equal widths.
            if widths[0] != widths[1] or is_map(mine) is not is_map(theirs):
                self.projections[str(own)] = Projection(*widths).to(mine.device)

    def add_vector_projection(self, student: Tensor, teacher: Tensor) -> None:
        """Add a projection of vectors if their sizes differ.

        Args:
            student: vectors of any batch.
            teacher: vectors of any batch.
        """
        sizes = student.shape[-1], teacher.shape[-1]
        self.vectors = None if sizes[0] == sizes[1] else VectorProjection(*sizes).to(student.device)

    def forward(
        self,
        student: LayerStates,
        teacher: LayerStates,
        mask: Tensor | None = None,
        images: bool = False,
    ) -> dict[str, Tensor]:
        """Return the unweighted terms by their name in the logs; terms of weight zero are left out.

        Args:
            student: its layer outputs.
            teacher: its layer outputs for the same tokens.
            mask: (batch, tokens), non-zero where a token counts; None counts all.
            images: tokens are patches; different numbers of patches are pooled to one grid.

        Raises:
            ModelError: a missing layer, different widths, or student states without gradient.
        """
        terms: dict[str, Tensor] = {}
        if self.config.hidden_weight:
            terms["hidden_loss"] = self._hidden(
                student.hidden_states, teacher.hidden_states, mask, images
            )
        if self.config.attention_weight:
            terms["attention_loss"] = self._attention(student.attentions, teacher.attentions, mask)
        if self.config.value_weight:
            terms["value_loss"] = self._value(student.values, teacher.values, mask)
        for term in terms.values():
            if torch.is_grad_enabled() and not term.requires_grad:
                raise ModelError(
                    "the student's layer outputs carry no gradient; with gradient checkpointing, "
                    "set use_reentrant to False"
                )
        return terms

    def _hidden(
        self, student: States, teacher: States, mask: Tensor | None, images: bool
    ) -> Tensor:
        total = []
        for own, other in self.layer_map.items():
            mine = _state(student, own, "student", "hidden state")
            theirs = _state(teacher, other, "teacher", "hidden state")
            known = str(own) in self.projections
            projection = self.projections[str(own)] if known else None
            distance = self.config.hidden_distance
            maps = is_map(mine) or is_map(theirs)
            if maps or (images and not same_kind(mine, theirs)):
                if distance == "patience":
                    raise ModelError(
                        "hidden_distance patience compares the first token, and a feature map has "
                        "none; set hidden_distance to normalized_mse"
                    )
                mine, theirs = on_one_grid(mine, theirs)
            else:
                theirs = fit_tokens(theirs, mine.shape[1], 1)
            total.append(hidden_state_loss(mine, theirs, mask, projection, distance))
        return torch.stack(total).sum()

    def _attention(self, student: States, teacher: States, mask: Tensor | None) -> Tensor:
        total = []
        for own, other in self.layer_map.items():
            mine = _state(student, own, "student", "attention map")
            theirs = _state(teacher, other, "teacher", "attention map")
            total.append(attention_loss(mine, fit_tokens(theirs, mine.shape[-1], 2, 3), mask))
        return torch.stack(total).sum()

    def _value(self, student: States, teacher: States, mask: Tensor | None) -> Tensor:
        own = max(self.layer_map)
        mine = _state(student, own, "student", "value")
        theirs = _state(teacher, self.layer_map[own], "teacher", "value")
        if self.heads is None:
            raise ModelError("cannot find the student's number of heads; set relation_heads")
        return value_relation_loss(mine, fit_tokens(theirs, mine.shape[1], 1), self.heads, mask)


def _state(states: States, layer: int, who: str, what: str) -> Tensor:
    if layer not in states:
        raise ModelError(
            f"the {who} returned no {what} for layer {layer}; return one, or set the weight of "
            "that loss to 0"
        )
    return states[layer]
