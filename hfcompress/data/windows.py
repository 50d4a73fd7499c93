"""Long texts in windows that a model can read, each token with its place in the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError, ModelError

Offsets = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """A part of an example as a model reads it.

    Attributes:
        example: number of the example.
        inputs: ``input_ids`` and the like.
        offsets: characters of each token in its text, [tokens, 2].
        sequences: 0 for tokens of the text or the question, 1 of the context, -1 for special
            tokens.
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
        texts: the texts; or questions and contexts, of which the contexts are divided.
        tokenizer: a fast one.
        limit: longest token sequence.
        overflow, stride: as in `DataConfig`.

    Raises:
        ModelError: a tokenizer that does not say where its tokens are.
        DataError: a question that leaves no room for its context.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} does not say which characters a token is of; load it with "
            f"AutoTokenizer, which gives a fast one where one exists"
        )
    shared = [shared_tokens(limit, stride)] * len(texts[0])
    if len(texts) == 2:
        rooms = _rooms(texts[0], tokenizer, limit)
        shared = [own if own < room else room // 2 for own, room in zip(shared, rooms, strict=True)]
    found: list[list[Window]] = [[] for _ in shared]
    for tokens in sorted(set(shared)):
        examples = [place for place, own in enumerate(shared) if own == tokens]
        columns = [[column[place] for place in examples] for column in texts]
        for window in _divided(columns, tokenizer, limit, tokens):
            place = examples[window.example]
            if overflow == "windows" or not found[place]:
                found[place].append(replace(window, example=place))
    for parts in found:
        yield from parts


def _divided(
    columns: Sequence[list[str]], tokenizer: PreTrainedTokenizerBase, limit: int, stride: int
) -> Iterator[Window]:
    """Yield all windows of examples whose windows share ``stride`` tokens."""
    # Where padding is on the left, models have seen the context before the question.
    context_first = len(columns) == 2 and tokenizer.padding_side == "left"
    only = "only_first" if context_first else "only_second"
    encoded = tokenizer(
        *(reversed(columns) if context_first else columns),
        truncation=True if len(columns) == 1 else only,
        max_length=limit,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    for place, example in enumerate(encoded["overflow_to_sample_mapping"]):
        ids = [-1 if number is None else number for number in encoded.sequence_ids(place)]
        yield Window(
            example,
            {name: encoded[name][place] for name in names},
            np.asarray(encoded["offset_mapping"][place], np.int64).reshape(-1, 2),
            np.array([1 - number if context_first and number >= 0 else number for number in ids]),
        )


def _rooms(
    questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int
) -> Iterator[int]:
    """Yield the tokens that each question leaves for its context.

    Raises:
        DataError: none.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    encoded = tokenizer(list(questions), add_special_tokens=False)["input_ids"]
    for place, ids in enumerate(encoded):
        room = limit - special - len(ids)
        if room < 1:
            raise DataError(
                f"the question of example {place} has {len(ids)} tokens and a window at most "
                f"{limit}, which leaves no room for its context; shorten the question, or write a "
                f"larger data.max_length"
            )
        yield room


def shared_tokens(limit: int, stride: int | None) -> int:
    """Return the tokens that two windows share: fewer than half of a window."""
    return min(limit // 4 if stride is None else stride, max(limit // 2 - 2, 0))


def window_fields(config: DataConfig) -> dict[str, object]:
    """Return how long texts are read, as far as it is not the default."""
    found = config.non_default_fields()
    return {name: found[name] for name in ("overflow", "stride") if name in found}
