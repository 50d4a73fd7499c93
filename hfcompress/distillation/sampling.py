"""``QuerySampler``: an order of training rows in which passages of a query are near each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from hfcompress.measure.ranking import by_query

TOGETHER = 8
"""Passages of a query that follow each other: a batch of 32 has some of four queries or more."""


class QuerySampler(Sampler[int]):
    """Yields the rows in a new random order each time, a few of a query at a time.

    Losses that compare the passages of a query find them in one batch, and batches differ between
    epochs.

    Args:
        queries: number of each row's query.
        seed: of the orders.
    """

    def __init__(self, queries: Sequence[int], seed: int = 0) -> None:
        self._groups = by_query(np.asarray(queries, np.int64))
        self._length, self._seed, self._epoch = len(queries), seed, 0

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Make the next order that of an epoch, as a resumed training asks."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self._seed, self._epoch])
        self._epoch += 1
        parts = []
        for group in self._groups:
            order = generator.permutation(group)
            parts += np.split(order, range(TOGETHER, len(order), TOGETHER))
        for place in generator.permutation(len(parts)):
            yield from parts[place].tolist()
