"""Images in batches: what the model's own processor gives, at the cost of a look-up."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import ViTImageProcessorPil
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import (
    EfficientNetImageProcessorPil,
)
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import (
    MobileNetV2ImageProcessorPil,
)

import hfcompress.data.image_batches as encode_images
from hfcompress.data.config import DataConfig
from hfcompress.data.encode import Encoded, encode
from hfcompress.data.image_batches import array_dataset, image_rows
from hfcompress.data.load import load_examples
from hfcompress.errors import DataError
from hfcompress.inference import predict
from hfcompress.models.image_models import new_config, new_model

SQUARE = {"height": 12, "width": 12}
PROCESSORS: list[Any] = [
    ViTImageProcessorPil(size=SQUARE),
    ViTImageProcessorPil(size={"height": 10, "width": 14}, resample=3, do_normalize=False),
    ViTImageProcessorPil(size=SQUARE, do_rescale=False, do_normalize=False),
    DeiTImageProcessorPil(size={"height": 16, "width": 16}, crop_size=SQUARE),
    ConvNextImageProcessorPil(size={"shortest_edge": 12}),
    MobileNetV2ImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE),
    EfficientNetImageProcessorPil(size=SQUARE),
    EfficientNetImageProcessorPil(size=SQUARE, rescale_offset=True, include_top=True),
    BitImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE),
]


def pictures(count: int = 5, grey: bool = False) -> list[Any]:
    chance = np.random.default_rng(0)
    shapes = [(9, 11), (20, 17), (12, 12), (30, 13), (8, 8)]
    made = [chance.integers(0, 256, (*shapes[i % 5], 3), np.uint8) for i in range(count)]
    images = [Image.fromarray(array) for array in made]
    return [image.convert("L") for image in images] if grey else images


def as_png(image: Any) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def rows_of(images: list[Any]) -> Dataset:
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    data = {"image": [as_png(image) for image in images], "label": list(range(len(images)))}
    return Dataset.from_dict(data, features)


def encoded(images: list[Any], processor: Any) -> Encoded:
    rows, collate = image_rows(rows_of(images), "image", processor)
    return Encoded(rows, None, collate)


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda made: type(made).__name__)
@pytest.mark.parametrize("kept", [True, False])
def test_as_the_processor_itself(
    processor: Any, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(encode_images, "KEPT_BYTES", 1)
    ((_, batch),) = encoded(pictures(), processor).batches(8)
    expected = processor(pictures(), return_tensors="pt")["pixel_values"].float()
    assert batch["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-4, rtol=1e-5)
    assert batch["labels"].tolist() == [0, 1, 2, 3, 4]


def test_some_rows_in_another_order() -> None:
    data = encoded(pictures(), PROCESSORS[0])
    ((_, whole),) = data.batches(8)
    ((_, part),) = data.select(np.array([3, 1])).batches(8)
    assert torch.equal(part["pixel_values"], whole["pixel_values"][[3, 1]])
    assert part["labels"].tolist() == [3, 1]
    assert data.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images_for_models_of_one_and_three_channels(channels: int) -> None:
    processor = ViTImageProcessorPil(
        size=SQUARE, image_mean=[0.25] * channels, image_std=[0.5] * channels
    )
    for grey in (True, False):
        ((_, batch),) = encoded(pictures(grey=grey), processor).batches(8)
        assert batch["pixel_values"].shape == (5, channels, 12, 12)
    arrays = np.random.default_rng(0).integers(0, 256, (4, 12, 12), np.uint8)
    rows, collate = image_rows(array_dataset(arrays, [0, 1, 0, 1], None), "image", processor)
    ((_, batch),) = Encoded(rows, None, collate).batches(8)
    expected = torch.from_numpy((arrays / 255 - 0.25) / 0.5).float()
    for channel in range(channels):
        torch.testing.assert_close(batch["pixel_values"][:, channel], expected)


def test_kept_rows_tell_their_content() -> None:
    """What caches of teachers know an image by: equal rows of other images are other rows."""
    first, second = (encoded(images, PROCESSORS[0]).rows["content"][:]
                     for images in (pictures(), [*pictures()[:4], pictures()[0]]))  # fmt: skip
    assert first[:4] == second[:4]
    assert second[4] == first[0] != first[4]


def test_a_batch_costs_a_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(pictures(), PROCESSORS[0])

    def opened(*_: Any) -> None:
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(encode_images, "open_image", opened)
    assert len([*data.batches(2)]) == 3


@pytest.mark.parametrize("kept", [True, False])
def test_a_bad_file_is_told_by_name(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for index, image in enumerate(pictures(3)):
            image.save(tmp_path / kind / f"{index}.png")
    bad = tmp_path / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:200])
    if not kept:
        monkeypatch.setattr(encode_images, "KEPT_BYTES", 1)
    examples = load_examples(DataConfig(path=str(tmp_path)), "image", False)
    with pytest.raises(DataError, match="cut short or damaged") as caught:
        [*encode(examples, examples.eval, PROCESSORS[0], None).batches(8)]
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_processor_that_makes_several_sizes() -> None:
    processor = BitImageProcessorPil(size={"shortest_edge": 12}, do_center_crop=False)
    with pytest.raises(DataError, match=r"makes images of \(3, 12, 14\) and|refuses images"):
        encoded(pictures(), processor)


@pytest.mark.parametrize(
    "family", ["vit", "deit", "swin", "resnet", "mobilenet_v2", "convnext", "efficientnet"]
)
def test_bf16_models_predict(family: str) -> None:
    """Pixels take the type of the weights, as a convolution needs."""
    config = new_config({"model_type": family, **TINY[family]}, None)
    model: Any = new_model(config, ["a", "b"], 0, 32)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    data = encoded(pictures(), processor)
    full, half = predict(model, data, 4), predict(model.to(torch.bfloat16), data, 4)
    assert full.shape == (5, 2)
    np.testing.assert_allclose(full, half, atol=0.1)


_TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 16, "image_size": 32, "patch_size": 8}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "vit": _TRANSFORMER,
    "deit": _TRANSFORMER,
    "swin": {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1],
             "num_heads": [1, 2], "window_size": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 32},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320,
                     "image_size": 32},
}  # fmt: skip


@pytest.fixture
def damaged_folder(tmp_path: Path) -> Path:
    """Eighteen images in two classes of which three, all of one class, cannot be read."""
    for index, image in enumerate(pictures(18)):
        folder = tmp_path / ("dog" if index < 9 else "cat")
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{index}.png")
    for name, content in (
        ("2", b"<html>"),
        ("4", b""),
        ("5", as_png(pictures(1)[0])["bytes"][:99]),
    ):
        (tmp_path / "dog" / f"{name}.png").write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("kept_bytes", [0, encode_images.KEPT_BYTES])
def test_every_unreadable_image_is_named(
    damaged_folder: Path, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_images, "KEPT_BYTES", kept_bytes)
    examples = load_examples(DataConfig(path=str(damaged_folder)), "image", need_train=False)
    with pytest.raises(DataError) as caught:
        encode(examples, examples.eval, PROCESSORS[0], None)
    said = str(caught.value)
    assert said.startswith("data: 3 images cannot be read; remove them or set data.skip_unreadable")
    assert all(f"dog/{name}.png (" in said for name in (2, 4, 5))
    assert "\n" not in said


def test_unreadable_images_are_left_out_and_counted(damaged_folder: Path) -> None:
    config = DataConfig(path=str(damaged_folder), skip_unreadable=True)
    examples = load_examples(config, "image", need_train=False)
    assert examples.dropped == {"eval: unreadable image": 3}
    assert examples.notes[-1].count(".png") == 3
    data = encode(examples, examples.eval, PROCESSORS[0], None)
    assert data.labels.tolist() == [0] * 9 + [1] * 6


@pytest.mark.parametrize("processor", [PROCESSORS[0], PROCESSORS[4]])
def test_large_images_are_resized_one_after_the_other(
    processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Dataset.from_list([{"image": as_png(image), "label": 0} for image in pictures(10)])
    whole = image_rows(rows, "image", processor)[1].pixels
    held: list[int] = []
    make = encode_images._Maker.make

    def spied(self: Any, images: list[Any]) -> Any:
        held.append(sum(image.width * image.height for image in images))
        return make(self, images)

    monkeypatch.setattr(encode_images._Maker, "make", spied)
    monkeypatch.setattr(encode_images, "_CHUNK_PIXELS", 300)
    parts = image_rows(rows, "image", processor)[1].pixels
    assert max(held) < 300 + 30 * 20
    assert len(held) > 4
    assert whole is not None
    assert parts is not None
    assert torch.equal(whole, parts)
