"""`encode`: rows -> tokens or pixels, and batches of rows of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hfcompress.data.image_batches import image_rows
from hfcompress.data.load import Examples
from hfcompress.models.loading import Processor

Batch = dict[str, Tensor]
Outputs = NDArray[np.float32]
Counted = Callable[[Outputs, Batch], Outputs]


@dataclass(frozen=True)
class Encoded:
    """One side of a data set, encoded.

    A model gives one output for each row, or several that count, such as one for each word: the
    outputs of all rows are one table, in the order of the rows.

    Attributes:
        rows: a dataset that gives ``input_ids``, ``attention_mask`` ... or what `collate` finds
            an image by, and ``labels``.
        lengths: tokens of each row; None for images, which are all of one size.
        collate: rows -> one padded batch of tensors.
        counts: number of outputs of each row that count; None where each row has one.
        counted: a model's array [rows, ...] for a batch, and the batch -> the outputs that count,
            [outputs, columns], row after row; None takes the array as it is.
        source: the examples, where a row is a part of one; a column of the rows says of which.
        groups: number of each row's group, where rows are compared within one: of its query.
        notes: what was left out, one sentence each.
    """

    rows: Dataset
    lengths: NDArray[np.int64] | None
    collate: Callable[[list[dict[str, Any]]], Batch]
    counts: NDArray[np.int64] | None = None
    counted: Counted | None = None
    source: Dataset | None = None
    groups: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> NDArray[np.generic]:
        """Label of each row, in the data's order."""
        name = "labels" if "labels" in self.rows.column_names else "label"
        return np.asarray(self.rows.with_format(None)[name][:])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Place of each row's first output in the table of all outputs, and the table's length."""
        counts = np.ones(len(self), np.int64) if self.counts is None else self.counts
        return np.concatenate([[0], np.cumsum(counts)])

    def places(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of some rows' outputs in the table, row after row."""
        parts = [np.arange(self.starts[row], self.starts[row + 1]) for row in indices]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def select(self, indices: NDArray[np.int64]) -> Encoded:
        """Some of the rows, in the order given."""
        lengths = None if self.lengths is None else self.lengths[indices]
        counts = None if self.counts is None else self.counts[indices]
        groups = None if self.groups is None else self.groups[indices]
        rows = self.rows.select(indices)
        return replace(self, rows=rows, lengths=lengths, counts=counts, groups=groups)

    def batches(
        self, batch_size: int, indices: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Batches of like length, longest first, each with its rows' indices.

        Sorting by length leaves hardly any padding to compute; longest first, so that running
        out of memory shows at once.

        Args:
            batch_size: rows in a batch.
            indices: which rows; all of them by default.
        """
        chosen = np.arange(len(self)) if indices is None else indices
        if self.lengths is not None:
            chosen = chosen[np.argsort(-self.lengths[chosen], kind="stable")]
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            yield part, self.collate([self.rows[int(index)] for index in part])


# Learned tables of positions by the name of their module: BERT, GPT-2, BART and others.
_POSITION_TABLES = ("position_embeddings", "position_embedding", "wpe", "embed_positions")


def text_limit(max_length: int | None, *models: object) -> int | None:
    """The longest token sequence that all models can read; None where nothing limits it.

    Args:
        max_length: asked for; None for no limit of its own.
        models: those with learned tables of positions limit it; others read any length.
    """
    limits = [] if max_length is None else [max_length]
    for model in models:
        for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
            if isinstance(module, nn.Embedding) and name.split(".")[-1] in _POSITION_TABLES:
                # RoBERTa counts positions from padding_idx + 1, BART from its offset.
                first = 0 if module.padding_idx is None else module.padding_idx + 1
                limits.append(module.num_embeddings - max(first, getattr(module, "offset", 0)))
    return min(limits, default=None)


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> Encoded:
    """Encode texts without labels.

    Args:
        texts: one string a row.
        tokenizer: the model's.
        max_length: as in `encode`.
    """
    rows = Dataset.from_dict({"text": list(texts)})
    return _encode_texts(rows, ("text",), tokenizer, max_length)


def encode(
    examples: Examples, rows: Dataset, processor: Processor, max_length: int | None
) -> Encoded:
    """Encode one side of the examples with a model's processor.

    Args:
        examples: says which columns hold the input.
        rows: ``examples.train`` or ``examples.eval``.
        processor: the model's tokenizer or image processor.
        max_length: longest token sequence, cut beyond; the model's own limit where None.
    """
    if examples.modality == "image":
        encoded, collate = image_rows(rows, examples.columns[0], processor)
        return Encoded(encoded, None, collate)
    return _encode_texts(
        rows, examples.columns, cast(PreTrainedTokenizerBase, processor), max_length
    )


def _encode_texts(
    rows: Dataset,
    columns: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> Encoded:
    limit = min(max_length or 512, tokenizer.model_max_length)

    def tokenise(batch: dict[str, list[str]]) -> dict[str, object]:
        texts = [batch[column] for column in columns]
        tokens = dict(tokenizer(*texts, truncation=True, max_length=limit))
        return tokens | ({"labels": batch["label"]} if "label" in batch else {})

    encoded = rows.map(
        tokenise,
        batched=True,
        remove_columns=rows.column_names,
        keep_in_memory=True,
        load_from_cache_file=False,
        desc="tokenising",
    )
    lengths = np.fromiter((len(ids) for ids in encoded["input_ids"]), np.int64, len(encoded))

    def collate(items: list[dict[str, Any]]) -> Batch:
        return dict(tokenizer.pad(items, return_tensors="pt"))

    return Encoded(encoded, lengths, collate)
