"""Distillation losses on what layers compute: two tensors in, a scalar out (torch only).

Each is zero where student and teacher agree, and leaves padding out. The teacher's tensors get no
gradient.
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
    """Distance of hidden states, mean over the tokens that are no padding.

    ``mse`` is the mean over features too (TinyBERT, 1909.10351); ``normalized_mse`` is that,
    divided by the mean square of the teacher's states, so that layers of different size weigh the
    same; ``cosine`` is 1 minus the cosine of each token (DistilBERT, 1910.01108); ``patience`` is
    the squared distance of the first token's states, each of length 1 (PKD, 1908.09355);
    ``attention_transfer`` is that of the energies, the sum of squares at each token, of each row
    together of length 1 (1612.03928): where the two look, whatever their features are.

    Args:
        student: (batch, tokens, student width).
        teacher: (batch, tokens, teacher width).
        mask: (batch, tokens), non-zero where a token counts; None counts all.
        projection: from the student's width to the teacher's, where they differ.
        distance: which.

    Raises:
        ConfigError: an unknown distance.
        ModelError: widths that differ without a projection (energies need none).
    """
    if distance not in get_args(HiddenDistance):
        known = ", ".join(get_args(HiddenDistance))
        raise ConfigError(f"the hidden distance must be one of {known}, not {distance!r}")
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
    if student.numel() == 0:  # a batch of padding only: no distance, and still a gradient
        return student.sum()
    if distance == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    difference = F.mse_loss(student, teacher)
    if distance == "mse":
        return difference
    return difference / teacher.square().mean().clamp_min(torch.finfo(teacher.dtype).tiny)


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Squared distance of attention maps: summed over keys, mean over heads and query tokens.

    Where the numbers of heads differ, the maps are averaged over the heads first. TinyBERT
    (1909.10351) compares attention in this way.

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
    """KL divergence of value relations, mean over heads and tokens (MiniLM, 2002.10957).

    A relation is the softmax of the scaled products of all tokens' values, so that the widths of
    student and teacher may differ.

    Args:
        student: (batch, tokens, student width), values of all heads side by side.
        teacher: (batch, tokens, teacher width).
        heads: into how many relation heads each width is cut (MiniLMv2, 2012.15828).
        mask: (batch, tokens), non-zero where a token counts; None counts all.

    Raises:
        ModelError: a width that the heads do not divide.
    """
    divergence = F.kl_div(
        _relation(student, heads, mask),
        _relation(teacher.detach(), heads, mask),
        reduction="none",
        log_target=True,
    ).sum(-1)
    return masked_mean(divergence, None if mask is None else mask[:, None])


def _relation(values: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Log-probabilities (batch, heads, tokens, tokens)."""
    batch, tokens, width = values.shape
    if width % heads:
        raise ModelError(
            f"{heads} relation heads do not divide the width {width}; set relation_heads to a "
            "number that divides the widths of student and teacher"
        )
    split = values.reshape(batch, tokens, heads, width // heads).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / (width // heads) ** 0.5
    if mask is not None:
        # A finite number: where a row is masked whole, infinities would give no number.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask[:, None, None].bool(), lowest)
    return F.log_softmax(scores, dim=-1)


def _energy(states: Tensor, mask: Tensor | None) -> Tensor:
    """The sum of squares at each token, (batch, tokens); 0 where padding is."""
    energy = states.square().sum(-1)
    return energy if mask is None else energy * mask.to(energy.dtype)


def _unit_distance(student: Tensor, teacher: Tensor) -> Tensor:
    difference = F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)
    return difference.square().sum(-1).mean()


# A class token, the distillation token of DeiT, or neither.
_SPECIAL_TOKENS = (0, 1, 2)


def is_map(state: Tensor) -> bool:
    """Whether a state has rows and columns: four dimensions."""
    return state.dim() == 4


def width_of(state: Tensor) -> int:
    """How many features a state has at each place."""
    return state.shape[1] if is_map(state) else state.shape[-1]


def same_kind(student: Tensor, teacher: Tensor) -> bool:
    """Whether two states can be compared place by place as they are."""
    if is_map(student) or is_map(teacher):
        return student.dim() == teacher.dim() and student.shape[2:] == teacher.shape[2:]
    return student.shape[1] == teacher.shape[1]


def on_one_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both states as tokens of one grid, row by row; class tokens are left out.

    The grid is the coarser one in each direction: the finer map is averaged over its cells, so
    that nothing is made up.

    Args:
        student: (batch, channels, height, width) or (batch, tokens, width).
        teacher: the same, or the other.

    Returns:
        (batch, places, features) each.

    Raises:
        ModelError: tokens that are no grid of patches.
    """
    shape = student.shape[2:] if is_map(student) else teacher.shape[2:]
    ratio = shape[0] / shape[1] if is_map(student) or is_map(teacher) else 1.0
    mine, theirs = as_map(student, ratio), as_map(teacher, ratio)
    height, width = map(min, zip(mine.shape[2:], theirs.shape[2:], strict=True))
    size = (height, width)
    return _tokens(_pooled(mine, size)), _tokens(_pooled(theirs, size))


def as_map(state: Tensor, ratio: float = 1.0) -> Tensor:
    """A state as (batch, features, height, width).

    Args:
        state: a map, or tokens of which the last ones are patches, row by row.
        ratio: height by width of the image.

    Raises:
        ModelError: no grid of that ratio has as many patches.
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
        f"{tokens} tokens are no grid of patches of height : width = {ratio:.3g}, with or without "
        f"a class token, so that they cannot be compared with a map; set hidden_weight to 0"
    )


def _pooled(state: Tensor, size: tuple[int, int]) -> Tensor:
    return state if tuple(state.shape[2:]) == size else F.adaptive_avg_pool2d(state, size)


def _tokens(state: Tensor) -> Tensor:
    return state.flatten(2).transpose(1, 2)
