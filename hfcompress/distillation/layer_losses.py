"""Distillation losses on layer outputs: two tensors in, a scalar out (torch only).

Each loss is zero where student and teacher agree and ignores padding. The teacher's tensors get
no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from hfcompress.distillation.losses import masked_mean
from hfcompress.errors import ConfigError, ModelError

HiddenDistance = Literal["mse", "normalized_mse", "cosine", "patience", "attention_transfer"]
Projection = Callable[[Tensor], Tensor]


def hidden_state_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    projection: Projection | None = None,
    distance: HiddenDistance = "mse",
) -> Tensor:
    """Return the distance of hidden states, mean over the tokens without padding.

    ``mse``: mean squared error over tokens and features (TinyBERT, 1909.10351).
    ``normalized_mse``: ``mse`` divided by the mean square of the teacher's states, so that layers
    with large states do not dominate. ``cosine``: 1 minus the cosine similarity of each token
    (DistilBERT, 1910.01108). ``patience``: squared distance of the first token's normalised states
    (PKD, 1908.09355). ``attention_transfer``: squared distance of the normalised energies, the sum
    of squares at each token (1612.03928); it needs no equal widths.

    Args:
        student: (batch, tokens, student width).
        teacher: (batch, tokens, teacher width).
        mask: (batch, tokens), non-zero where a token counts; None counts all.
        projection: maps the student's width to the teacher's where they differ.
        distance: one of the above.

    Raises:
        ConfigError: an unknown distance.
        ModelError: different widths without a projection (except ``attention_transfer``).
    """
    if distance not in get_args(HiddenDistance):
        known = ", ".join(get_args(HiddenDistance))
        raise ConfigError(f"hidden_distance must be one of {known}, not {distance!r}")
    if distance == "attention_transfer":
        return _unit_distance(_energy(student, mask), _energy(teacher.detach(), mask))
    student = student if projection is None else projection(student)
    if student.shape != teacher.shape:
        raise ModelError(
            f"hidden states of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} "
            "differ in shape; give a projection where the widths differ"
        )
    teacher = teacher.detach()
    if distance == "patience":
        return _unit_distance(student[:, 0], teacher[:, 0])
    if mask is not None:
        student, teacher = student[mask.bool()], teacher[mask.bool()]
    if student.numel() == 0:  # only padding: a zero connected to the graph, for backward()
        return student.sum()
    if distance == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    difference = F.mse_loss(student, teacher)
    if distance == "mse":
        return difference
    return difference / teacher.square().mean().clamp_min(torch.finfo(teacher.dtype).tiny)


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the squared distance of attention maps (TinyBERT, 1909.10351).

    It is summed over keys and averaged over heads and query tokens. If the numbers of heads
    differ, the maps are averaged over the heads first.

    Args:
        student: (batch, student heads, tokens, tokens), probabilities over the last dimension.
        teacher: (batch, teacher heads, tokens, tokens).
        mask: (batch, tokens), non-zero where a token counts; None counts all.
    """
    teacher = teacher.detach()
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    difference = (student - teacher).square()
    if mask is not None:
        difference = difference * mask[:, None, None].to(difference.dtype)
    queries = None if mask is None else mask[:, None]
    return masked_mean(difference.sum(-1), queries)


def value_relation_loss(
    student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    """Return the KL divergence of value relations, mean over heads and tokens (MiniLM, 2002.10957).

    A relation is the softmax of the scaled dot products of all tokens' values, so the widths of
    student and teacher may differ.

    Args:
        student: (batch, tokens, student width), values of all heads side by side.
        teacher: (batch, tokens, teacher width).
        heads: number of relation heads that each width is split into (MiniLMv2, 2012.15828).
        mask: (batch, tokens), non-zero where a token counts; None counts all.

    Raises:
        ModelError: a width that is not a multiple of the heads.
    """
    divergence = F.kl_div(
        _relation(student, heads, mask),
        _relation(teacher.detach(), heads, mask),
        reduction="none",
        log_target=True,
    ).sum(-1)
    return masked_mean(divergence, None if mask is None else mask[:, None])


def _relation(values: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Return log-probabilities (batch, heads, tokens, tokens)."""
    batch, tokens, width = values.shape
    if width % heads:
        raise ModelError(
            f"cannot split width {width} into {heads} relation heads; set relation_heads to a "
            "divisor of the widths of student and teacher"
        )
    split = values.reshape(batch, tokens, heads, width // heads).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / (width // heads) ** 0.5
    if mask is not None:
        # Use a finite mask value: softmax over a fully masked row of -inf is NaN.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask[:, None, None].bool(), lowest)
    return F.log_softmax(scores, dim=-1)


def _energy(states: Tensor, mask: Tensor | None) -> Tensor:
    """Return the sum of squares at each token, (batch, tokens); 0 for padding."""
    energy = states.square().sum(-1)
    return energy if mask is None else energy * mask.to(energy.dtype)


def _unit_distance(student: Tensor, teacher: Tensor) -> Tensor:
    difference = F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)
    return difference.square().sum(-1).mean()


# Numbers of tokens before the patches: none, a class token, and DeiT's distillation token.
_SPECIAL_TOKENS = (0, 1, 2)


def is_map(state: Tensor) -> bool:
    """Return whether a state is a feature map (batch, channels, height, width)."""
    return state.dim() == 4


def width_of(state: Tensor) -> int:
    """Return the number of features of a state at each position."""
    return state.shape[1] if is_map(state) else state.shape[-1]


def same_kind(student: Tensor, teacher: Tensor) -> bool:
    """Return whether two states have the same positions: an equal grid or number of tokens."""
    if is_map(student) or is_map(teacher):
        return student.dim() == teacher.dim() and student.shape[2:] == teacher.shape[2:]
    return student.shape[1] == teacher.shape[1]


def on_one_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both states as the tokens of one grid, row by row, without class tokens.

    The grid is the coarser one in each direction; the finer map is average-pooled to it.

    Args:
        student: (batch, channels, height, width) or (batch, tokens, width).
        teacher: either form, too.

    Returns:
        (batch, positions, features) each.

    Raises:
        ModelError: tokens that do not form a patch grid.
    """
    shape = student.shape[2:] if is_map(student) else teacher.shape[2:]
    ratio = shape[0] / shape[1] if is_map(student) or is_map(teacher) else 1.0
    mine, theirs = as_map(student, ratio), as_map(teacher, ratio)
    height, width = map(min, zip(mine.shape[2:], theirs.shape[2:], strict=True))
    size = (height, width)
    return _tokens(_pooled(mine, size)), _tokens(_pooled(theirs, size))


def as_map(state: Tensor, ratio: float = 1.0) -> Tensor:
    """Return a state as a map (batch, features, height, width).

    Args:
        state: a map, or tokens that end with the patches, row by row.
        ratio: height / width of the image.

    Raises:
        ModelError: the number of patches does not fit a grid of that ratio.
    """
    if is_map(state):
        return state
    tokens = state.shape[1]
    for special in _SPECIAL_TOKENS:
        height = round(math.sqrt((tokens - special) * ratio))
        width = (tokens - special) // height if height else 0
        if height and height * width == tokens - special and width == round(height / ratio):
            patches = state[:, special:].transpose(1, 2)
            return patches.reshape(len(state), -1, height, width)
    raise ModelError(
        f"cannot reshape {tokens} tokens into a patch grid of height : width = {ratio:.3g}, with "
        f"or without class tokens; set hidden_weight to 0"
    )


def _pooled(state: Tensor, size: tuple[int, int]) -> Tensor:
    return state if tuple(state.shape[2:]) == size else F.adaptive_avg_pool2d(state, size)


def _tokens(state: Tensor) -> Tensor:
    return state.flatten(2).transpose(1, 2)
