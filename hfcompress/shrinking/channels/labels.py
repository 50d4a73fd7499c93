"""Disjoint sets of channel labels: equal labels are removed together, label 0 is never removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.int64]
"""One label for each place of one dimension of a tensor."""
Marks = dict[int, Vector]
"""The labels of a tensor's dimensions; a dimension without an entry has none."""


class Labels:
    """Labels of all channels of a network, united where channels can only go together."""

    def __init__(self) -> None:
        self._parent: Vector = np.zeros(1, np.int64)

    @property
    def count(self) -> int:
        """The number of labels, with label 0."""
        return len(self._parent)

    def new(self, size: int) -> Vector:
        """Make labels that equal no other."""
        made = np.arange(len(self._parent), len(self._parent) + size)
        self._parent = np.concatenate([self._parent, made])
        return made

    def roots(self, vector: Vector) -> Vector:
        """The smallest label of each label's set; 0 for channels that stay."""
        found: Vector = self._parent[vector]
        while True:
            higher: Vector = self._parent[found]
            if np.array_equal(higher, found):
                return found
            found = higher

    def _root(self, label: int) -> int:
        while (higher := int(self._parent[label])) != label:
            label = higher
        return label

    def unite(self, first: Vector, second: Vector) -> None:
        """Unite the sets of two labels at each place; the vectors are broadcast."""
        one, other = np.broadcast_arrays(self.roots(first), self.roots(second))
        differ = one != other
        for pair in set(zip(one[differ].tolist(), other[differ].tolist(), strict=True)):
            low, high = sorted(map(self._root, pair))
            self._parent[high] = low

    def unite_all(self, vectors: Sequence[Vector | None]) -> Vector | None:
        """Unite vectors of one length; None is a constant, which keeps all channels.

        Returns:
            one of the vectors; None where there are only constants.
        """
        present = [vector for vector in vectors if vector is not None]
        for vector in present[1:]:
            self.unite(present[0], vector)
        if len(present) < len(vectors):
            self.freeze(present[:1])
        return present[0] if present else None

    def freeze(self, vectors: Iterable[Vector]) -> None:
        """Keep all channels with these labels."""
        for vector in vectors:
            self.unite(vector, np.zeros(1, np.int64))

    def tie(self, vector: Vector, parts: int) -> None:
        """Unite the labels at the same place of each of some equal parts of a vector."""
        split = vector.reshape(parts, -1)
        self.unite(split, split[:1])


class MarkedTensors:
    """The labels of tensors.

    Args:
        labels: united as operators run.
        marks: of the parameters and buffers, by ``id``; all of them have an entry.
    """

    def __init__(self, labels: Labels, marks: Mapping[int, Marks]) -> None:
        self.labels = labels
        self._marks = dict(marks)
        self._weights = set(marks)
        self._alive: list[Tensor] = []  # an id must not be given to another tensor

    def of(self, tensor: Tensor) -> Marks:
        """The labels of a tensor."""
        return self._marks.get(id(tensor), {})

    def set(self, tensor: Tensor, marks: Marks) -> None:
        """Label a tensor."""
        self._alive.append(tensor)
        self._marks[id(tensor)] = marks

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is computed from parameters and constants alone."""
        return id(tensor) in self._weights

    def add_weights(self, tensors: Sequence[Tensor]) -> None:
        """Note tensors that are computed from parameters and constants alone."""
        self._alive += tensors
        self._weights.update(map(id, tensors))

    def freeze(self, tensors: Iterable[Tensor]) -> None:
        """Keep all channels that tensors have."""
        for tensor in tensors:
            self.labels.freeze(self.of(tensor).values())

    def united(self, tensors: Sequence[Tensor], shape: Sequence[int]) -> Marks:
        """The labels of an element-wise result whose operands are broadcast to a shape."""
        found: Marks = {}
        for dim, size in enumerate(shape):
            owners = [(tensor, dim - len(shape) + tensor.dim()) for tensor in tensors]
            wide = [(t, own) for t, own in owners if own >= 0 and t.shape[own] == size > 1]
            vector = self.labels.unite_all([self.of(tensor).get(own) for tensor, own in wide])
            if vector is not None:
                found[dim] = vector
        return found
