"""A trial's rows as each of its models reads them: a step may give the model another tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hfcompress.data import Examples
from hfcompress.data.encode import Batch, Encoded, encode
from hfcompress.shrinking.vocabulary.shrink import keep_tokens
from hfcompress.shrinking.vocabulary.tokenizer import CutTokenizer


@dataclass
class Encoding:
    """Rows encoded by one processor, each side when it is first asked for.

    Attributes:
        processor: the model's tokenizer or image processor.
        examples: raw rows.
        max_length: longest token sequence.
        trains: some step reads training rows.
    """

    processor: Any
    examples: Examples
    max_length: int | None
    trains: bool
    _batches: list[tuple[NDArray[np.int64], Batch]] | None = None

    @cached_property
    def train(self) -> Encoded | None:
        """Training rows; None where no step reads them, or there are none."""
        rows = self.examples.train if self.trains else None
        return None if rows is None else self._encoded(rows)

    @cached_property
    def eval(self) -> Encoded:
        """Measured rows."""
        return self._encoded(self.examples.eval)

    def batches(self, size: int) -> list[tuple[NDArray[np.int64], Batch]] | None:
        """The measured rows in batches, made once; None for images, which are too many to keep."""
        if self._batches is None and self.eval.lengths is not None:
            self._batches = list(self.eval.batches(size))
        return self._batches

    def _encoded(self, rows: Dataset) -> Encoded:
        return encode(self.examples, rows, self.processor, self.max_length)


@dataclass
class Encodings:
    """The encoding after each prefix of steps.

    Attributes:
        first: what all trials start from.
    """

    first: Encoding
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
            processor = self._cuts[last].tokenizer
            self._made[last] = replace(self.first, processor=processor, _batches=None)
        return self._made[last]

    def adapt(self, model: PreTrainedModel, prefixes: list[str]) -> PreTrainedModel:
        """Make a model of before read rows of after: cut its tokens as these steps did."""
        for prefix in prefixes:
            if prefix in self._cuts:
                keep_tokens(model, self._cuts[prefix].kept)
        return model
