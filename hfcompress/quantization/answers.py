"""Logits of several batches as tables without padding, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hfcompress.inference import Logits
from hfcompress.quantization.engine import Arrays
from hfcompress.tasks.outputs import OutputKind


def output_values(parts: Sequence[Logits], batches: Sequence[Arrays], kind: OutputKind) -> Logits:
    """Return the logits that count, [outputs, columns]: of rows, or of tokens that are text.

    Args:
        parts: logits of each batch.
        batches: what they are of.
        kind: what they mean.
    """
    return np.concatenate(
        [_text_tokens(part, batch, kind) for part, batch in zip(parts, batches, strict=True)]
    )


def _text_tokens(logits: Logits, batch: Arrays, kind: OutputKind) -> Logits:
    if kind != "tokens":
        return logits
    mask = batch.get("attention_mask")
    is_text = np.ones(logits.shape[:2], bool) if mask is None else np.asarray(mask) != 0
    found: Logits = logits[is_text]
    return found
