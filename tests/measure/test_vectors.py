"""Vectors stored smaller: what their cosines are, how many bytes they take."""

from __future__ import annotations

import numpy as np
import pytest

from hfcompress.errors import ConfigError
from hfcompress.measure.ranking import unit_vectors
from hfcompress.measure.vectors import EmbeddingConfig, read_vectors, store_vectors

VECTORS = np.random.default_rng(0).normal(size=(40, 20)).astype(np.float32)


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = unit_vectors(vectors)
    return np.asarray(unit @ unit.T)


def test_int8_keeps_cosines() -> None:
    config = EmbeddingConfig(precision="int8")
    stored = store_vectors(VECTORS, config)
    assert stored.dtype == np.int8
    found = cosines(read_vectors(stored, config, 20))
    np.testing.assert_allclose(found, cosines(VECTORS), atol=0.01)
    assert np.abs(found - cosines(VECTORS)).max() > 1e-5


def test_binary_cosines_are_those_of_the_bits_that_differ() -> None:
    config = EmbeddingConfig(precision="binary")
    stored = store_vectors(VECTORS, config)
    assert stored.shape == (40, 3)
    assert stored.dtype == np.uint8
    signs = VECTORS > 0
    differ = (signs[:, None] != signs[None]).sum(-1)
    np.testing.assert_allclose(
        cosines(read_vectors(stored, config, 20)), 1 - 2 * differ / 20, atol=1e-6
    )


@pytest.mark.parametrize(("precision", "size"), [("float32", 32), ("int8", 8), ("binary", 1)])
def test_fewer_dimensions_take_fewer_bytes(precision: str, size: int) -> None:
    config = EmbeddingConfig.from_dict({"dimensions": 8, "precision": precision})
    stored = store_vectors(VECTORS, config)
    assert stored[0].nbytes == config.bytes(20) == size
    first = store_vectors(VECTORS[:, :8], EmbeddingConfig.from_dict({"precision": precision}))
    np.testing.assert_array_equal(stored, first)
    assert not config.is_plain
    assert EmbeddingConfig().is_plain


def test_refuses_more_dimensions_than_there_are() -> None:
    with pytest.raises(ConfigError, match="vectors have 20 values; write at most 20"):
        store_vectors(VECTORS, EmbeddingConfig(dimensions=21))


def test_zero_vectors_stay_zero() -> None:
    stored = store_vectors(np.zeros((2, 4), np.float32), EmbeddingConfig(precision="int8"))
    assert not stored.any()
