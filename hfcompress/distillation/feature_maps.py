"""Hidden states of images as maps: a CNN's and a transformer's on one grid (torch only).

A CNN's state is (batch, channels, height, width); a vision transformer's is (batch, tokens,
width), its patches row by row after a class token or two.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from hfcompress.errors import ModelError

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
