"""The classes that fp32 gives, at nearly the cost of bf16.

Processors with bf16 matrix units multiply bf16 several times faster than fp32, and most rows are
so far from a decision boundary that the difference cannot change their class. Those that are near
one are computed again in fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hfcompress.data.encode import Encoded
from hfcompress.inference import Batches, Logits, predict
from hfcompress.measure.environment import cpu_abilities

# The largest error seen is multiplied by this before a row is trusted: errors are bell-shaped,
# so that three times the largest of some hundred is beyond anything that occurs.
SAFETY = 3.0
# Rows whose error is looked at before any is trusted.
SAMPLE = 64

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Prediction:
    """What a model says of every row.

    Attributes:
        logits: float32 [rows, classes]; those of rows that are far from a boundary have the
            precision of bf16.
        exact_rows: how many rows were computed in fp32.
    """

    logits: Logits
    exact_rows: int


def checking_pays(model: nn.Module, data: Encoded) -> bool:
    """True where `bf16_is_faster`, and for more than a few rows."""
    return bf16_is_faster(model) and len(data) > 2 * SAMPLE


def bf16_is_faster(model: nn.Module) -> bool:
    """True for an fp32 model on a processor with bf16 matrix products."""
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        return False
    abilities = cpu_abilities()
    return bool(abilities.get("amx_bf16") or abilities.get("avx512_bf16"))


def predict_checked(
    model: nn.Module,
    data: Encoded,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    batches: Batches | None = None,
) -> Prediction:
    """Logits whose largest entry stands where fp32 puts it.

    All rows are predicted by a copy of the model in bf16. A sample of them, the ones nearest to a
    decision boundary among it, is predicted in fp32; the largest error seen there, times
    `SAFETY`, is what a row may be wrong by, and every row nearer to a boundary is computed in
    fp32 too.

    Args:
        model: a classifier of two or more classes; put in eval mode.
        data: rows to predict.
        batch_size: rows in a batch.
        progress: called with (rows done, rows in all) after each batch of the first pass.
        batches: as in `predict`.
    """
    half: nn.Module = copy.deepcopy(model).to(torch.bfloat16)
    logits = predict(half, data, batch_size, progress, batches)
    rough = logits.copy()
    margins = _margins(rough)
    done = np.zeros(len(data), bool)
    error, open_rows = 0.0, _sample(margins)
    while len(open_rows):
        logits[open_rows] = predict(model, data.select(open_rows), batch_size)
        done[open_rows] = True
        error = max(error, _largest_error(rough[open_rows], logits[open_rows]))
        open_rows = np.flatnonzero((margins <= SAFETY * error) & ~done)
    return Prediction(logits, int(done.sum()))


def _margins(logits: Logits) -> NDArray[np.float32]:
    """How far the largest logit is above the second."""
    top = np.partition(logits, -2, axis=1)[:, -2:]
    margins: NDArray[np.float32] = top[:, 1] - top[:, 0]
    return margins


def _sample(margins: NDArray[np.float32]) -> Rows:
    """Half of the sample nearest to a boundary, half evenly from all other rows."""
    order = np.argsort(margins, kind="stable")
    nearest, others = order[: SAMPLE // 2], np.sort(order[SAMPLE // 2 :])
    spaced = np.linspace(0, len(others) - 1, min(SAMPLE // 2, len(others))).astype(np.int64)
    return np.sort(np.concatenate([nearest, others[spaced]]))


def _largest_error(rough: Logits, exact: Logits) -> float:
    """The most by which the difference of two logits of one row is wrong."""
    error = rough - exact
    return float((error.max(axis=1) - error.min(axis=1)).max())
