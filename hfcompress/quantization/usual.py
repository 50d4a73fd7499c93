"""An engine's form for the shape that most batches have; smaller ones are padded to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hfcompress.errors import ConfigError
from hfcompress.quantization.engine import Arrays, Engine, Fixable, fixed


class UsualShape:
    """Batches of up to one shape, computed in that shape; compiled when the first one comes.

    Args:
        engine: for any shape.
        shape: examples and tokens; images have their own size.
        pad_id: the tokenizer's; decoders find the last token of a text by it.

    Raises:
        ConfigError: a size below 1.
    """

    def __init__(self, engine: Engine, shape: tuple[int, int], pad_id: int = 0) -> None:
        if len(shape) != 2 or min(shape) < 1:
            raise ConfigError(f"shape is examples and tokens, such as (1, 32), not {shape}")
        self._engine, self._shape, self._pad_id = engine, shape, pad_id
        self._made: Engine | None = None

    def takes(self, arrays: Arrays) -> bool:
        """Whether the engine has a form of its own for the shape, and a batch fits."""
        return isinstance(self._engine, Fixable) and all(
            size <= limit
            for value in arrays.values()
            for size, limit in zip(value.shape, self._limits(value), strict=True)
        )

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Logits of a batch that fits.

        Raises:
            ModelError: the engine refuses the shape.
        """
        rows = len(next(iter(arrays.values())))
        padded = self._padded(arrays)
        if self._made is None:
            self._made = fixed(self._engine, padded)
        return self._made.logits(padded)[:rows]

    def _padded(self, arrays: Arrays) -> Mapping[str, NDArray[np.generic]]:
        """Padding behind: no attention, and examples that nobody asks for."""
        return {
            name: np.pad(
                value,
                [
                    (0, limit - size)
                    for size, limit in zip(value.shape, self._limits(value), strict=True)
                ],
                constant_values=self._pad_id if name == "input_ids" else 0,
            )
            for name, value in arrays.items()
        }

    def _limits(self, value: NDArray[np.generic]) -> tuple[int, ...]:
        return self._shape if value.ndim == 2 else (self._shape[0], *value.shape[1:])
