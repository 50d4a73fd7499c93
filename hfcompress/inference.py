"""A model's logits for encoded rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hfcompress.data.encode import Batch, Encoded
from hfcompress.forward import call_model, logits_in

Logits = NDArray[np.float32]
Batches = Iterable[tuple[NDArray[np.int64], Batch]]


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
    weight = next(model.parameters())

    def run(batch: Batch) -> Logits:
        inputs = {
            key: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for key, value in batch.items()
            if key != "labels"
        }
        found: Logits = logits_in(call_model(model, inputs)).float().cpu().numpy()
        return found

    return predict_with(run, data, batch_size, progress, batches)


def predict_with(
    run: Callable[[Batch], Logits],
    data: Encoded,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    batches: Batches | None = None,
) -> Logits:
    """As `predict`, by whatever gives one batch's logits.

    Args:
        run: one batch -> float32 [rows of the batch, classes].
        data, batch_size, progress, batches: as in `predict`.
    """
    logits: Logits | None = None
    done = 0
    for indices, batch in data.batches(batch_size) if batches is None else batches:
        part = run(batch)
        if logits is None:
            logits = np.empty((len(data), part.shape[1]), np.float32)
        logits[indices] = part
        done += len(indices)
        if progress is not None:
            progress(done, len(data))
    assert logits is not None
    return logits
