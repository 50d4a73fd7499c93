"""A trial's rows as each of its models reads them: a step may give the model another tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hfcompress.data import Examples
from hfcompress.encode import Batch, Encoded, encode
from hfcompress.vocabulary.shrink import keep_tokens
from hfcompress.vocabulary.tokenizer import CutTokenizer


@dataclass
class Encoding:
    """Rows encoded by one processor.

    Attributes:
        processor: the model's tokenizer or image processor.
        train: training rows, where a step reads them.
        eval: measured rows.
    """

    processor: Any
    train: Encoded | None
    eval: Encoded
    _batches: list[tuple[NDArray[np.int64], Batch]] | None = None

    def batches(self, size: int) -> list[tuple[NDArray[np.int64], Batch]] | None:
        """The measured rows in batches, made once; None for images, which are too many to keep."""
        if self._batches is None and self.eval.lengths is not None:
            self._batches = list(self.eval.batches(size))
        return self._batches


@dataclass
class Encodings:
    """The encoding after each prefix of steps.

    Attributes:
        first: what all trials start from.
        examples: raw rows.
        max_length: longest token sequence.
    """

    first: Encoding
    examples: Examples
    max_length: int | None
    _cuts: dict[str, CutTokenizer] = field(default_factory=dict)
    _made: dict[str, Encoding] = field(default_factory=dict)

    def cut(self, prefix: str, tokenizer: CutTokenizer) -> None:
        """Note that the step which makes ``prefix`` has given its model another tokenizer."""
        self._cuts[prefix] = tokenizer

    def after(self, prefixes: list[str]) -> Encoding:
        """The encoding for the model after the last of some prefixes, all from the start on."""
        last = next((prefix for prefix in reversed(prefixes) if prefix in self._cuts), None)
        if last is None:
            return self.first
        if last not in self._made:
            processor, limit = self._cuts[last].tokenizer, self.max_length
            examples, train = self.examples, self.examples.train
            self._made[last] = Encoding(
                processor,
                None if self.first.train is None or train is None
                else encode(examples, train, processor, limit),
                encode(examples, examples.eval, processor, limit),
            )  # fmt: skip
        return self._made[last]

    def adapt(self, model: PreTrainedModel, prefixes: list[str]) -> PreTrainedModel:
        """Make a model of before read rows of after: cut its tokens as these steps did."""
        for prefix in prefixes:
            if prefix in self._cuts:
                keep_tokens(model, self._cuts[prefix].kept)
        return model
