"""Long texts in windows that a model can read, each token with its place in the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hfcompress.data.config import DataConfig
from hfcompress.errors import ModelError

Offsets = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """A part of an example as a model reads it.

    Attributes:
        example: number of the example.
        inputs: ``input_ids`` and the like.
        offsets: characters of each token in its text, [tokens, 2].
        sequences: 0 or 1 for tokens of the first or the second text, -1 for special tokens.
    """

    example: int
    inputs: dict[str, list[int]]
    offsets: Offsets
    sequences: NDArray[np.int64]


def windows(
    texts: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    overflow: str,
    stride: int | None,
) -> Iterator[Window]:
    """Yield the windows of each example, in order.

    Args:
        texts: the texts; or the first and the second texts, of which the second are divided.
        tokenizer: a fast one.
        limit: longest token sequence.
        overflow, stride: as in `DataConfig`.

    Raises:
        ModelError: a tokenizer that does not say where its tokens are.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} does not say which characters a token is of; load it with "
            f"AutoTokenizer, which gives a fast one where one exists"
        )
    encoded = tokenizer(
        *[list(column) for column in texts],
        truncation=True if len(texts) == 1 else "only_second",
        max_length=limit,
        stride=shared_tokens(limit, stride),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    seen = -1
    for place, example in enumerate(encoded["overflow_to_sample_mapping"]):
        if overflow == "cut" and example == seen:
            continue
        seen = example
        ids = encoded.sequence_ids(place)
        yield Window(
            example,
            {name: encoded[name][place] for name in names},
            np.asarray(encoded["offset_mapping"][place], np.int64).reshape(-1, 2),
            np.array([-1 if number is None else number for number in ids]),
        )


def shared_tokens(limit: int, stride: int | None) -> int:
    """Return the tokens that two windows share: fewer than half of a window."""
    return min(limit // 4 if stride is None else stride, max(limit // 2 - 2, 0))


def window_fields(config: DataConfig) -> dict[str, object]:
    """Return how long texts are read, as far as it is not the default."""
    found = config.non_default_fields()
    return {name: found[name] for name in ("overflow", "stride") if name in found}
