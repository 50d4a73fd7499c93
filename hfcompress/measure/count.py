"""Counting values of a tensor: numpy does it many times faster than torch on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Values compared at a time: what the comparison gives stays in the processor's cache.
_CHUNK = 1 << 18


def count_nonzeros(tensor: Tensor) -> int:
    """How many values are not exactly zero; a negative zero is one, NaN is none."""
    if tensor.device.type != "cpu" or tensor.dtype == torch.bfloat16:
        return int(torch.count_nonzero(tensor))
    values = tensor.detach().reshape(-1).numpy()
    parts = range(0, len(values), _CHUNK)
    return sum(int(np.count_nonzero(values[start : start + _CHUNK] != 0)) for start in parts)
