"""Logits of several batches as tables without padding, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hfcompress.inference import Logits
from hfcompress.models.outputs import BY_TOKEN
from hfcompress.quantization.engine import Arrays
from hfcompress.tasks.outputs import OutputKind

PADDING = -10000.0
"""Logit of a token that is padding: finite, because infinities give NaN in a KL divergence."""
PLACES = 32
"""Places in height and in width at which the logits of an image are compared."""


def output_values(parts: Sequence[Logits], batches: Sequence[Arrays], kind: OutputKind) -> Logits:
    """Return the logits that count, [outputs, columns]: of rows, or of tokens that are text; of
    answers the two ends of each token; of pixels those of `PLACES` x `PLACES` at most.

    Args:
        parts: logits of each batch.
        batches: what they are of.
        kind: what they mean.
    """
    return np.concatenate(
        [_text_tokens(part, batch, kind) for part, batch in zip(parts, batches, strict=True)]
    )


def distributions(parts: Sequence[Logits], batches: Sequence[Arrays], kind: OutputKind) -> Logits:
    """Return logits of which each row is a distribution, [outputs, classes]: as `output_values`,
    but of an answer's ends over the tokens of its row, [2 * rows, tokens].

    Args:
        parts, batches, kind: as there.
    """
    if kind != "spans":
        return output_values(parts, batches, kind)
    width = max(part.shape[-1] for part in parts)
    rows = []
    for part, batch in zip(parts, batches, strict=True):
        masked = np.where(_is_text(part.shape[-1], batch)[:, None], part, PADDING)
        padded = np.pad(
            masked, ((0, 0), (0, 0), (0, width - part.shape[-1])), constant_values=PADDING
        )
        rows.append(padded.reshape(-1, width))
    return np.concatenate(rows).astype(np.float32)


def _text_tokens(logits: Logits, batch: Arrays, kind: OutputKind) -> Logits:
    if kind == "spans":
        logits = logits.transpose(0, 2, 1)
    elif kind == "pixels":
        down, right = (max(1, size // PLACES) for size in logits.shape[2:])
        return logits[:, :, ::down, ::right].transpose(0, 2, 3, 1).reshape(-1, logits.shape[1])
    elif kind not in BY_TOKEN:
        return logits
    found: Logits = logits[_is_text(logits.shape[1], batch)]
    return found


def _is_text(tokens: int, batch: Arrays) -> NDArray[np.bool_]:
    """Return which tokens of a batch are not padding, [rows, tokens]."""
    mask = batch.get("attention_mask")
    if mask is None:
        return np.ones((len(next(iter(batch.values()))), tokens), bool)
    is_text: NDArray[np.bool_] = np.asarray(mask) != 0
    return is_text
