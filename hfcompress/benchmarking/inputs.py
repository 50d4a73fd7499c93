"""Batches to time: random, unpadded, the same for everyone; numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGE = "pixel_values"


@dataclass(frozen=True)
class InputSpec:
    """What a model reads.

    Attributes:
        names: of its inputs.
        vocabulary: ids that it knows; 0 for images.
        padding: the id that must not occur.
        longest: tokens that it takes at most; 0 where nothing limits them.
        pixels: channels, height and width of an image; empty for texts.
    """

    names: tuple[str, ...]
    vocabulary: int = 0
    padding: int = 0
    longest: int = 0
    pixels: tuple[int, ...] = ()

    @property
    def images(self) -> bool:
        """Whether it reads images."""
        return IMAGE in self.names


def input_spec(config: Any, names: tuple[str, ...]) -> InputSpec:
    """Read a transformers config.

    Args:
        config: of the model.
        names: what its engine reads.
    """
    if IMAGE in names:
        side = config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return InputSpec(names, pixels=(int(config.num_channels), int(height), int(width)))
    padding = getattr(config, "pad_token_id", None)
    longest = int(getattr(config, "max_position_embeddings", None) or 0)
    # RoBERTa's kin count positions from behind the padding id.
    kin = any(name in str(config.model_type) for name in ("roberta", "camembert"))
    if longest and kin:
        longest -= int(padding or 0) + 1
    return InputSpec(names, int(config.vocab_size), -1 if padding is None else padding, longest)


def make_inputs(spec: InputSpec, batch: int, length: int) -> dict[str, NDArray[Any]]:
    """One batch.

    Args:
        spec: of the model.
        batch: examples.
        length: tokens of each; without meaning for images.
    """
    generator = np.random.default_rng(0)
    if spec.images:
        pixels = generator.standard_normal((batch, *spec.pixels), np.float32)
        return {IMAGE: pixels}
    ids = generator.integers(0, spec.vocabulary, (batch, length), np.int64)
    ids[ids == spec.padding] = (spec.padding + 1) % spec.vocabulary
    made = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    return {name: made[name] for name in spec.names}
