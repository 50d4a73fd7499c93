"""Vectors stored in fewer bytes: fewer dimensions, 8-bit integers, or one bit for each value."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcompress.config import Config
from hfcompress.errors import ConfigError

Precision = Literal["float32", "int8", "binary"]
Stored = NDArray[np.float32] | NDArray[np.int8] | NDArray[np.uint8]
"""Vectors as they are stored; binary ones have eight values in a byte."""
_LARGEST = 127


class EmbeddingConfig(Config):
    """How vectors are stored; a recipe's ``embedding``.

    Raises:
        ConfigError: an unknown field or a value out of range.
    """

    dimensions: int | None = Field(
        None, ge=1, description="keep the first values of each vector; all of them by default"
    )
    precision: Precision = Field(
        "float32",
        description="float32; int8, each vector times a scale of its own; binary, the sign of each "
        "value, eight in a byte",
    )

    @property
    def is_plain(self) -> bool:
        """Whether vectors are stored as the model gives them."""
        return self.dimensions is None and self.precision == "float32"

    def check(self, size: int) -> None:
        """Refuse more dimensions than there are.

        Args:
            size: values of the model's vector.

        Raises:
            ConfigError: ``dimensions`` above it.
        """
        if self.dimensions is not None and self.dimensions > size:
            raise ConfigError(
                f"embedding.dimensions is {self.dimensions} and the model's vectors have {size} "
                f"values; write at most {size}"
            )

    def bytes(self, size: int) -> int:
        """Return the bytes of one stored vector.

        Args:
            size: values of the model's vector.
        """
        size = min(self.dimensions or size, size)
        return {"float32": 4 * size, "int8": size, "binary": -(-size // 8)}[self.precision]


def store_vectors(vectors: NDArray[np.float32], config: EmbeddingConfig) -> Stored:
    """Return vectors as they are stored.

    The cosine of two int8 vectors is that of the integers: the scale, which makes a vector's
    largest value 127, cancels. Of binary vectors it is 1 - 2 d / n, with d bits of n that differ.

    Args:
        vectors: [texts, size].
        config: how.

    Returns:
        float32 or int8 [texts, dimensions], or uint8 [texts, dimensions / 8] with the first value
        in the highest bit.

    Raises:
        ConfigError: more dimensions than there are.
    """
    config.check(vectors.shape[1])
    cut = vectors[:, : config.dimensions]
    if config.precision == "binary":
        return np.packbits(cut > 0, axis=1)
    if config.precision == "int8":
        largest = np.abs(cut).max(axis=1, keepdims=True)
        scaled = cut / np.where(largest > 0, largest, 1) * _LARGEST
        rounded: NDArray[np.int8] = np.rint(scaled).astype(np.int8)
        return rounded
    return np.ascontiguousarray(cut)


def read_vectors(
    stored: NDArray[np.generic], config: EmbeddingConfig, size: int
) -> NDArray[np.float32]:
    """Return float32 vectors whose cosines are those of the stored ones, [texts, dimensions].

    Args:
        stored: from `store_vectors`.
        config: how they were stored.
        size: values of the model's vector.
    """
    if config.precision != "binary":
        return stored.astype(np.float32)
    count = min(config.dimensions or size, size)
    bits = np.unpackbits(stored.astype(np.uint8), axis=1, count=count)
    return np.asarray(2.0 * bits - 1.0, np.float32)
