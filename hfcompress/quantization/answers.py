"""Logits of several batches as tables without padding, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hfcompress.inference import Logits
from hfcompress.quantization.engine import Arrays
from hfcompress.tasks.outputs import OutputKind

# Log-odds of a token that is padding: its probability is 0 in fp32.
_PADDING = -1e4


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


def distributions(parts: Sequence[Logits], batches: Sequence[Arrays], kind: OutputKind) -> Logits:
    """Return the logits by what is chosen among, [choices, candidates].

    Classes are chosen for each output; for spans a token is chosen in each text, twice.
    """
    if kind != "spans":
        return output_values(parts, batches, kind)
    longest = max(part.shape[-1] for part in parts)
    rows = []
    for part, batch in zip(parts, batches, strict=True):
        padding = ~_is_text(batch, part.shape[-1], len(part))[:, None, :]
        masked = np.where(padding, _PADDING, part).reshape(-1, part.shape[-1])
        width = [(0, 0), (0, longest - part.shape[-1])]
        rows.append(np.pad(masked, width, constant_values=_PADDING))
    return np.concatenate(rows).astype(np.float32)


def _text_tokens(logits: Logits, batch: Arrays, kind: OutputKind) -> Logits:
    if kind not in ("tokens", "spans"):
        return logits
    by_token: Logits = logits.swapaxes(1, 2) if kind == "spans" else logits
    return by_token[_is_text(batch, by_token.shape[1], len(by_token))]


def _is_text(batch: Arrays, tokens: int, rows: int) -> NDArray[np.bool_]:
    mask = batch.get("attention_mask")
    return np.ones((rows, tokens), bool) if mask is None else np.asarray(mask) != 0
