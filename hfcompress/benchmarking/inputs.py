"""Random batches without padding, the same for every engine; needs only numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IMAGE = "pixel_values"
_USUAL_SIDE = 224


@dataclass(frozen=True)
class InputSpec:
    """The inputs of a model.

    Attributes:
        names: of its inputs.
        vocabulary: number of token ids; 0 for images.
        padding: the padding id, which batches avoid.
        longest: maximum number of tokens; 0 without a limit.
        pixels: channels, height and width of an image; empty for texts.
    """

    names: tuple[str, ...]
    vocabulary: int = 0
    padding: int = 0
    longest: int = 0
    pixels: tuple[int, ...] = ()

    @property
    def images(self) -> bool:
        """Return whether the model reads images."""
        return IMAGE in self.names


def input_spec(config: PretrainedConfig, names: tuple[str, ...]) -> InputSpec:
    """Return the inputs that a transformers config describes.

    Args:
        config: of the model.
        names: of the engine's inputs.
    """
    if IMAGE in names:
        side = getattr(config, "image_size", None) or _USUAL_SIDE
        height, width = (side, side) if isinstance(side, int) else side
        return InputSpec(names, pixels=(int(config.num_channels), int(height), int(width)))
    padding = getattr(config, "pad_token_id", None)
    longest = int(getattr(config, "max_position_embeddings", None) or 0)
    # Models like RoBERTa number positions from padding id + 1.
    offset = any(name in str(config.model_type) for name in ("roberta", "camembert"))
    if longest and offset:
        longest -= int(padding or 0) + 1
    return InputSpec(names, int(config.vocab_size), -1 if padding is None else padding, longest)


def make_inputs(spec: InputSpec, batch: int, length: int) -> dict[str, NDArray[np.generic]]:
    """Return one random batch.

    Args:
        spec: of the model.
        batch: number of examples.
        length: tokens of each; ignored for images.
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
