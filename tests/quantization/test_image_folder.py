"""The deployable folder of a classifier of images: image files in, labels out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    EfficientNetImageProcessorPil,
    MobileNetV2ImageProcessorPil,
    ViTImageProcessorPil,
)

import hfcompress
from hfcompress.cli.commands import main
from hfcompress.errors import DataError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.pixels import image_settings, make_pixels
from hfcompress.quantization.quantize import quantize
from tests.tiny_images import image_batches, image_model

ROOT = Path(__file__).parents[2]
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("shared_exports")


def processor(**options: Any) -> Any:
    return ViTImageProcessorPil(size={"height": 32, "width": 32}, **options)


def picture(seed: int = 0, width: int = 50, height: int = 40) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(colours).resize((width, height))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = image_model("resnet")
    model.config.id2label = {0: "boot", 1: "bag", 2: "coat"}
    made = quantize(model, QuantizationConfig(), image_batches())
    return made.save(tmp_path / "folder", processor())


def test_files_and_images_are_classified_as_the_processor_and_the_model_do(
    folder: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    images = [picture(seed) for seed in range(3)]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    classify = hfcompress.load(folder)
    found: Any = classify([str(path) for path in paths])
    assert found == classify(images) == classify(paths)
    pixels = processor()(images, return_tensors="np")["pixel_values"]
    logits = classify.logits({"pixel_values": pixels})
    chances = torch.from_numpy(logits).softmax(-1)
    names = ["boot", "bag", "coat"]
    assert [row["label"] for row in found] == [names[int(row.argmax())] for row in chances]
    assert [row["score"] for row in found] == pytest.approx(chances.amax(1).tolist(), abs=1e-5)
    one: Any = classify(images[0], top_k=None)
    assert one[0]["label"] == found[0]["label"]


def test_the_example_runs_with_the_engine_numpy_and_pillow_alone(
    folder: Path, tmp_path: Path
) -> None:
    paths = [str(tmp_path / f"{seed}.png") for seed in range(2)]
    for seed, path in enumerate(paths):
        picture(seed).save(path)
    blocked = "torch=None, transformers=None, hfcompress=None, tokenizers=None"
    run = f"import sys, runpy; sys.modules.update({blocked}); "
    run += f"sys.argv = ['example.py', *{paths!r}]; "
    run += f"runpy.run_path({str(folder / 'example.py')!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", run], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: Any = hfcompress.load(folder)(paths)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(label, path) for label, _, path in lines] == [
        (row["label"], path) for row, path in zip(found, paths, strict=True)
    ]
    assert [float(line[1]) for line in lines] == pytest.approx(
        [row["score"] for row in found], abs=1e-3
    )
    text = (folder / "example.py").read_text()
    assert "type: ignore" not in text
    assert "pip install onnxruntime numpy pillow" in text


def test_predict_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture().save(tmp_path / "photo.png")
    assert main(["predict", str(folder), str(tmp_path / "photo.png")]) == 0
    line = capsys.readouterr().out.strip()
    assert line.split()[0] in ("boot", "bag", "coat")
    assert line.endswith("photo.png")
    (tmp_path / "notes.png").write_text("no image")
    assert main(["predict", str(folder), str(tmp_path / "notes.png")]) == 2
    assert "Pillow cannot read this as an image" in " ".join(capsys.readouterr().err.split())


PROCESSORS = {
    "vit": lambda: ViTImageProcessorPil(),
    "grey": lambda: processor(image_mean=[0.3], image_std=[0.2]),
    "convnext small": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 224}),
    "convnext large": lambda: ConvNextImageProcessorPil(),
    "mobilenet": lambda: MobileNetV2ImageProcessorPil(),
    "efficientnet": lambda: EfficientNetImageProcessorPil(),
    "deit": lambda: DeiTImageProcessorPil(),
    "clip": lambda: CLIPImageProcessorPil(),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_settings_in_the_folder_do_what_the_processor_does(name: str) -> None:
    theirs: Any = PROCESSORS[name]()  # type: ignore[no-untyped-call]
    settings = image_settings(theirs)
    assert settings is not None
    assert json.loads(json.dumps(settings)) == settings
    for size in ((500, 333), (224, 224), (240, 600)):
        image = picture(1, *size).convert("L" if name == "grey" else "RGB")
        expected = np.asarray(theirs([image], return_tensors="np")["pixel_values"])
        np.testing.assert_allclose(make_pixels([image], settings), expected, atol=1e-3)


def test_a_processor_that_settings_cannot_express_is_saved_and_used(tmp_path: Path) -> None:
    odd = processor(do_resize=True, resample=3)
    odd.do_normalize = False

    class Odd:
        """Not linear in the values."""

        def save_pretrained(self, folder: Path) -> None:
            odd.save_pretrained(folder)

        def __call__(self, images: Any, **_: Any) -> Any:
            return {"pixel_values": np.asarray(odd(images)["pixel_values"]) ** 2}

    made = quantize(image_model("resnet"), QuantizationConfig(), image_batches())
    folder = made.save(tmp_path / "folder", cast(Any, Odd()))
    assert not (folder / "example.py").exists()
    found: Any = hfcompress.load(folder)(picture())
    assert 0 < found["score"] <= 1


def test_grey_deep_and_transparent_files_are_read_as_a_viewer_shows_them(
    folder: Path, tmp_path: Path
) -> None:
    classify = hfcompress.load(folder)
    grey = picture().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    grey.save(tmp_path / "grey.png")
    assert classify(tmp_path / "deep.png") == classify(tmp_path / "grey.png")
    clear = picture().convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    assert classify(tmp_path / "clear.png") == classify(Image.new("RGB", clear.size, "white"))


def test_refuses_damaged_and_missing_image_files_by_name(folder: Path, tmp_path: Path) -> None:
    classify = hfcompress.load(folder)
    picture().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("no image")
    for name, said in (
        ("cut.png", r"cut short or damaged .*cut\.png"),
        ("text.png", r"Pillow cannot read this as an image: .*text\.png"),
        ("nowhere.png", r"there is no image file '.*nowhere\.png'"),
    ):
        with pytest.raises(DataError, match=said):
            classify(tmp_path / name)
