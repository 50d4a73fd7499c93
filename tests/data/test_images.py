"""Images as people have them: each as a viewer shows it, or one sentence with the file's name."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hfcompress.data.images import from_array, open_image
from hfcompress.data.levels import eight_bits
from hfcompress.errors import DataError
from hfcompress.quantization.pixels import open_upright


def pixel(image: Any) -> Any:
    return np.asarray(image)[0, 0].tolist()


def as_bytes(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def transparent_palette() -> Any:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    ("image", "colour", "grey"),
    [
        (Image.new("L", (4, 4), 77), [77, 77, 77], 77),
        (Image.new("1", (4, 4), 1), [255, 255, 255], 255),
        (Image.new("RGB", (4, 4), (10, 20, 30)), [10, 20, 30], 18),
        # Black and wholly transparent, half transparent red: on white, as a viewer shows it.
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), [255, 255, 255], 255),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 128)), [255, 127, 127], 165),
        (Image.new("LA", (4, 4), (0, 0)), [255, 255, 255], 255),
        (transparent_palette(), [255, 255, 255], 255),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 255)), [0, 0, 0], 0),
    ],
)
def test_modes(image: Any, colour: list[int], grey: int) -> None:
    found = open_image(image, "row 0")
    assert found.mode == "RGB"
    assert pixel(found) == colour
    assert open_image(image, "row 0", grey=True).mode == "L"
    assert abs(pixel(open_image(image, "row 0", grey=True)) - grey) <= 1


def test_palette_transparency_survives_a_file() -> None:
    data = as_bytes(transparent_palette(), transparency=0)
    assert pixel(open_image({"bytes": data, "path": None}, "row 0")) == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(kind: str) -> None:
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    found = open_image(as_bytes(Image.fromarray(deep), kind), "row 0", grey=True)
    assert np.asarray(found).tolist() == [[0, 1, 128, 255]]
    dark = np.full((2, 2), 514, np.uint16)  # stays dark, whatever its own brightest pixel is
    assert pixel(open_image(as_bytes(Image.fromarray(dark), kind), "row 0", grey=True)) == 2


def test_floats_and_wide_integers() -> None:
    unit = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert np.asarray(open_image(unit, "row 0", grey=True)).tolist() == [[0, 128, 255]]
    wide = Image.fromarray(np.array([[0, 100000, 200000]], np.int32))
    assert np.asarray(open_image(wide, "row 0", grey=True)).tolist() == [[0, 128, 255]]
    small = Image.fromarray(np.array([[0, 7, 255]], np.int32))
    assert np.asarray(open_image(small, "row 0", grey=True)).tolist() == [[0, 7, 255]]
    lists = [[0, 255], [0, 255]]
    assert np.asarray(open_image(lists, "row 0", grey=True)).tolist() == lists


def test_arrays_with_channels_first_or_last() -> None:
    last = np.zeros((6, 5, 3), np.uint8)
    last[..., 2] = 9
    for array in (last, np.moveaxis(last, -1, 0)):
        image = from_array(array)
        assert image.size == (5, 6)
        assert pixel(image) == [0, 0, 9]
    assert from_array(last[..., :1]).mode == "L"


def test_a_camera_held_sideways() -> None:
    image = Image.new("RGB", (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert open_image(as_bytes(image, "JPEG", exif=exif), "row 0").size == (4, 8)


def test_the_first_picture_of_an_animation() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (11, 99)]
    data = as_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(open_image(data, "row 0", grey=True)) == 11


def cut(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path.write_bytes(as_bytes(Image.fromarray(noise))[:4000])


def cut_jpeg(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path.write_bytes(as_bytes(Image.fromarray(noise), "JPEG")[:2000])


def text(path: Path) -> None:
    path.write_text("this is no picture")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (cut, "the image is cut short or damaged"),
        (cut_jpeg, "the image is cut short or damaged"),
        (text, "Pillow cannot read this as an image"),
        (empty, "Pillow cannot read this as an image"),
    ],
)
def test_files_that_are_no_image(
    write: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.png"
    write(path)
    with pytest.raises(DataError, match=message) as caught:
        open_image({"bytes": None, "path": str(path)}, "row 3")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "(there is no image): row 3"),
        ({"bytes": b"x", "path": "a.png"}, "as an image: a.png, row 3"),
        (np.zeros((2, 3, 4, 5)), "of shape (2, 3, 4, 5) is not an image"),
        (np.full((2, 2), np.nan), "not finite"),
    ],
)
def test_values_that_are_no_image(value: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_image(value, "row 3")
    assert message in str(caught.value)
    assert "row 3" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 1023], np.uint16), [0, 255]),  # 10 bits
        (np.array([0, 2048, 4095], np.uint16), [0, 127, 255]),  # 12 bits
        (np.array([0, 8192, 16383], np.int32), [0, 127, 255]),  # 14 bits
        (np.array([0, 40000, 65535], np.uint16), [0, 155, 255]),
        (np.array([0, 257, 514], np.uint16), [0, 1, 2]),  # bytes that were scaled to 16 bits
        (np.array([0, 200], np.uint16), [0, 200]),
        (np.array([0.0, 0.25, 1.0], np.float32), [0, 64, 255]),
        (np.array([0.0, 4095.0], np.float32), [0, 255]),
        (np.array([-1.0, 0.0, 1.0], np.float32), [0, 128, 255]),
        (np.array([False, True]), [0, 255]),
        (np.array([0, 0], np.uint16), [0, 0]),
    ],
)
def test_values_of_every_depth_become_bytes(values: Any, expected: list[int]) -> None:
    assert eight_bits(values).tolist() == expected


def test_twelve_bit_pictures_keep_their_levels(tmp_path: Path) -> None:
    pixels = np.arange(0, 4096, 16, dtype=np.uint16)[None]
    pixels[0, -1] = 4095
    path = tmp_path / "deep.png"
    Image.fromarray(pixels).save(path)
    found = np.asarray(open_image({"path": str(path)}, "row 0", grey=True))
    assert len(np.unique(found)) >= 255
    deployed = np.asarray(open_upright(path).convert("L"))
    assert np.array_equal(deployed, found)


def test_a_picture_of_too_many_pixels_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    data = as_bytes(Image.new("L", (64, 64)))
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"the image cannot be read .*exceeds limit .*: row 7"):
        open_image(data, "row 7")
