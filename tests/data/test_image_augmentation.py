"""Augmentation: each image a view of itself, by the seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hfcompress.data.images import ImageAugmentation, augment_images
from hfcompress.errors import ConfigError

IMAGES = torch.randint(1, 256, (64, 3, 9, 7), dtype=torch.uint8,
                       generator=torch.Generator().manual_seed(0))  # fmt: skip


def augmented(seed: int = 0, images: Tensor = IMAGES, **fields: Any) -> Tensor:
    torch.manual_seed(seed)
    before = images.clone()
    found = augment_images(images, ImageAugmentation(**fields))
    assert torch.equal(images, before)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    return found


def test_flip() -> None:
    found = augmented(flip=0.5)
    same = (found == IMAGES).flatten(1).all(1)
    mirrored = (found == IMAGES.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 16 < mirrored.sum() < 48
    assert torch.equal(augmented(flip=1), IMAGES.flip(-1))


def test_shift() -> None:
    framed = torch.nn.functional.pad(IMAGES, (2, 2, 2, 2))
    seen = set()
    for image, frame in zip(augmented(shift=2), framed, strict=True):
        places = [(y, x) for y in range(5) for x in range(5)
                  if torch.equal(frame[:, y:y + 9, x:x + 7], image)]  # fmt: skip
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 15


def test_erase_hides_one_rectangle() -> None:
    found = augmented(erase=1.0)
    for image, original in zip(found, IMAGES, strict=True):
        changed = (image != original).any(0)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        if len(rows):
            box = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (box == box[:, :1, :1]).all()
            assert box[0].numel() <= 0.6 * image[0].numel()
    share = (found != IMAGES).any(1).float().mean()
    assert 0.02 < share < 0.25
    untouched = (augmented(erase=0.25) == IMAGES).flatten(1).all(1)
    assert 32 < untouched.sum() < 62


def test_a_seed_repeats_it() -> None:
    fields: dict[str, Any] = {"flip": 0.5, "shift": 2, "erase": 0.5}
    assert torch.equal(augmented(1, **fields), augmented(1, **fields))
    assert not torch.equal(augmented(1, **fields), augmented(2, **fields))


def test_floats() -> None:
    assert augmented(images=IMAGES.float(), flip=0.5, shift=1, erase=1.0).isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [({}, "nothing is set"), ({"flip": 2}, "flip"), ({"shift": -1}, "shift"), ({"x": 1}, "'x'")],
)
def test_configs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageAugmentation(**fields)
