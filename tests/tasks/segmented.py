"""Small pictures with a mask each, and a tiny SegFormer for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)

CLASSES = ("ground", "disc", "bar")
SIDE = 32


def tiny_segformer(seed: int = 0, labels: tuple[str, ...] = CLASSES, **config: Any) -> Any:
    """A SegFormer of two stages that gives each class to some pixels of noise."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [2, 4],
        "mlp_ratios": [2, 2], "decoder_hidden_size": 16, "initializer_range": 0.2,
        "drop_path_rate": 0.0, "id2label": dict(enumerate(labels)),
        "label2id": {name: number for number, name in enumerate(labels)},
    }  # fmt: skip
    model: Any = SegformerForSemanticSegmentation(SegformerConfig(**{**sizes, **config}))
    model.eval()
    with torch.no_grad():
        logits = model(pixel_values=torch.randn(1, 3, SIDE, SIDE)).logits
        model.decode_head.classifier.bias -= logits.mean((0, 2, 3))
    return model


ONE_STAGE: dict[str, Any] = {
    "num_encoder_blocks": 1, "depths": [1], "sr_ratios": [2], "hidden_sizes": [16],
    "patch_sizes": [7], "strides": [4], "num_attention_heads": [2], "mlp_ratios": [2],
}  # fmt: skip
"""Sizes of a model that is exported in a few seconds."""


def processor(side: int = SIDE, **options: Any) -> Any:
    """What makes its images."""
    return SegformerImageProcessorPil(size={"height": side, "width": side}, **options)


def pictures(
    count: int, seed: int = 0, size: tuple[int, int] = (40, 48)
) -> list[tuple[Image.Image, Image.Image]]:
    """Pictures of a disc or a bar on a ground, each in its own colour, and their masks, whose edge
    is ignored (255); the same for the same seed.

    Args:
        count: how many.
        seed: of places, kinds and noise.
        size: height and width.
    """
    generator, (height, width) = np.random.default_rng(seed), size
    rows, columns = np.mgrid[:height, :width]
    found = []
    for _ in range(count):
        kind, top, left = generator.integers(1, 3), *(generator.integers(8, n - 8) for n in size)
        shape = (rows - top) ** 2 + (columns - left) ** 2 < 64
        if kind == 2:
            shape = (abs(rows - top) < 4) & (abs(columns - left) < 12)
        mask = np.where(shape, kind, 0).astype(np.uint8)
        mask[:2] = 255
        colours = np.array([(60, 60, 60), (220, 40, 40), (40, 40, 220)])
        pixels = colours[np.where(mask == 255, 0, mask)] + generator.integers(-20, 20, (*size, 3))
        found.append((Image.fromarray(pixels.astype(np.uint8)), Image.fromarray(mask)))
    return found


def write_pictures(folder: Path, count: int, seed: int = 0, **options: Any) -> Path:
    """Write ``images/`` and ``masks/`` into a folder; returns it."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for place, (image, mask) in enumerate(pictures(count, seed, **options)):
        image.save(folder / "images" / f"{place:02}.png")
        mask.save(folder / "masks" / f"{place:02}.png")
    return folder


def save_segformer(folder: Path, **config: Any) -> Path:
    """Save a `tiny_segformer` and its image processor; returns the folder."""
    tiny_segformer(**config).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
