"""A model's logits for encoded rows: exact, or with the products in bf16 where that is safe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hfcompress.encode import Batch, Encoded

Logits = NDArray[np.float32]
Batches = Iterable[tuple[NDArray[np.int64], Batch]]

# The bf16 error is estimated on some rows; a decision counts as safe beyond so many times that.
_SAFETY = 8.0
_CHECKED_ROWS = 32
# bf16 must be this much faster on the machine at hand to be worth the second look.
_WORTH = 1.3


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: Encoded,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    batches: Batches | None = None,
) -> Logits:
    """The model's logits for every row, in the data's order.

    Args:
        model: put in eval mode; its device is used.
        data: rows to predict.
        batch_size: rows in a batch.
        progress: called with (rows done, rows in all) after each batch.
        batches: what ``data.batches`` gave, where the caller keeps it for several models.

    Returns:
        float32 [rows, classes].
    """
    model.eval()
    device = next(model.parameters()).device
    logits: Logits | None = None
    done = 0
    for indices, batch in data.batches(batch_size) if batches is None else batches:
        inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
        part = model(**inputs).logits.float().cpu().numpy()
        if logits is None:
            logits = np.empty((len(data), part.shape[1]), np.float32)
        logits[indices] = part
        done += len(indices)
        if progress is not None:
            progress(done, len(data))
    assert logits is not None
    return logits


def predict_fast(
    model: nn.Module,
    data: Encoded,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    batches: Batches | None = None,
) -> Logits:
    """The model's logits, with fp32 products computed in bf16 where this changes no decision.

    Rows are predicted with bf16 products (fp32 sums). On some rows the error is measured; every
    row whose two best classes are closer than eight times the largest error seen is predicted
    again in fp32, and so on until no close row is left. Logits of the other rows carry the bf16
    error, their classes do not change. Where bf16 is not faster (the first batch is timed both
    ways), this is `predict`.

    Args and returns: as `predict`.
    """
    kept = list(data.batches(batch_size) if batches is None else batches)
    model.eval()
    if not _bf16_pays(model, kept[0][1]):
        return predict(model, data, batch_size, progress, kept)
    with _bf16_products():
        logits = predict(model, data, batch_size, progress, kept)
    exact = np.zeros(len(data), dtype=bool)
    close = np.unique(np.linspace(0, len(data) - 1, _CHECKED_ROWS).astype(np.int64))
    error = 0.0
    while len(close):
        again = predict(model, data.select(close), batch_size)
        error = max(error, float(np.abs(_margins(again) - _margins(logits[close])).max()))
        logits[close] = again
        exact[close] = True
        close = np.flatnonzero((_margins(logits) < _SAFETY * error) & ~exact)
    return logits


def _margins(logits: Logits) -> Logits:
    """Distance of the best class from the second best, for each row."""
    if logits.shape[1] < 2:
        return np.abs(logits[:, 0])
    best = np.partition(logits, -2, axis=1)
    margins: Logits = best[:, -1] - best[:, -2]
    return margins


@contextmanager
def _bf16_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _bf16_pays(model: nn.Module, batch: Batch) -> bool:
    """Whether one batch is clearly faster with bf16 products on this machine."""
    exact = _seconds(model, batch)
    with _bf16_products():
        return exact > _WORTH * _seconds(model, batch)


@torch.inference_mode()
def _seconds(model: nn.Module, batch: Batch) -> float:
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    times = []
    for _ in range(3):  # the first call also warms up
        started = time.perf_counter()
        model(**inputs)
        times.append(time.perf_counter() - started)
    return min(times)
