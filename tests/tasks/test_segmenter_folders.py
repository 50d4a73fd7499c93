"""Folders of quantized segmentation models answer as transformers' pipeline does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, pipeline

import hfcompress
from hfcompress.cli.commands import main
from hfcompress.errors import DataError, ModelError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.image_script import image_script
from hfcompress.quantization.quantize import quantize
from hfcompress.tasks.outputs import pixel_classes
from tests.fresh_process import run_fresh
from tests.tasks.segmented import ONE_STAGE, SIDE, pictures, processor, tiny_segformer

IMAGES = [
    *(image for image, _ in pictures(2)),
    *(image for image, _ in pictures(2, seed=1, size=(31, 57))),
]


def classes(answer: list[Any], names: dict[int, str]) -> Any:
    """The class of each pixel of an answer; every pixel has one."""
    numbers = {name: number for number, name in names.items()}
    masks = np.stack([np.asarray(one["mask"]) == 255 for one in answer])
    assert (masks.sum(0) == 1).all()
    return np.array([numbers[one["label"]] for one in answer])[masks.argmax(0)]


@pytest.mark.parametrize(
    ("backend", "mode", "same"),
    [
        ("torch", "dynamic", 1.0),
        ("onnxruntime", "none", 0.999),
        ("openvino", "none", 0.999),
        ("onnxruntime", "dynamic", 0.85),
    ],
)
@pytest.mark.usefixtures("shared_exports")
def test_folders_answer_as_the_pipeline(
    tmp_path: Path, backend: str, mode: str, same: float
) -> None:
    pytest.importorskip(backend)
    model = tiny_segformer(**ONE_STAGE)
    config = QuantizationConfig.from_dict({"backend": backend, "mode": mode})
    rows = dict(processor()(IMAGES, return_tensors="pt"))
    small = quantize(model, config, [rows])
    logits: Any = small(**rows).logits
    assert logits.shape == (4, 3, SIDE // 4, SIDE // 4)
    folder = small.save(tmp_path / "folder", processor())
    if backend == "torch":
        kind: Any = AutoModelForSemanticSegmentation
        model = kind.from_pretrained(folder)
    ask: Any = pipeline("image-segmentation", model=model, image_processor=processor())
    segment: Any = hfcompress.load(folder)
    agreed = []
    for own, theirs in zip(segment.predict(IMAGES), ask(IMAGES), strict=True):
        assert all(one["score"] is None for one in (*own, *theirs))
        assert len(own) > 1
        if same == 1:
            assert [one["label"] for one in own] == [one["label"] for one in theirs]
        names = model.config.id2label
        agreed.append((classes(own, names) == classes(theirs, names)).mean())
    assert np.mean(agreed) >= same
    alone = segment(IMAGES[0])
    assert alone[0]["mask"].size == IMAGES[0].size
    if backend == "openvino":
        return
    files = [tmp_path / f"{place}.png" for place in range(2)]
    for file, image in zip(files, IMAGES, strict=False):
        image.save(file)
    expected = [
        f"{one['label']} {np.mean(np.asarray(one['mask']) == 255):.4f} {file}"
        for file in files
        for one in segment(file)
    ]
    if backend == "onnxruntime" and mode == "none":
        printed = run_fresh(folder / "example.py", *map(str, files)).splitlines()
        assert printed == expected


def test_predict_prints_labels_and_their_shares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_segformer(**ONE_STAGE)
    folder = quantize(model, QuantizationConfig(backend="torch")).save(tmp_path / "f", processor())
    file = tmp_path / "photo.png"
    IMAGES[0].save(file)
    segment: Any = hfcompress.load(folder)
    shares = {one["label"]: float(np.mean(np.asarray(one["mask"]) == 255)) for one in segment(file)}
    assert main(["predict", str(folder), str(file)]) == 0
    lines = [f"  {label} {share:.4f}" for label, share in shares.items()]
    assert capsys.readouterr().out.splitlines() == [str(file), *lines]
    assert main(["predict", str(folder), str(file), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {one["label"]: one["share"] for one in printed["segments"]} == pytest.approx(shares)
    with pytest.raises(DataError, match=r"there is no image file '.*no.png'"):
        segment(tmp_path / "no.png")
    with pytest.raises(DataError, match="got no image"):
        segment([])
    with pytest.raises(ModelError, match="a class for each pixel, not scores of an image"):
        segment.scores(file)
    (folder / "preprocessor_config.json").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"preprocessor_config.json is damaged or mixed"):
        hfcompress.load(folder)
    bare: Any = hfcompress.load(
        quantize(model, QuantizationConfig(backend="torch")).save(tmp_path / "bare")
    )
    with pytest.raises(DataError, match="the folder has no image processor"):
        bare(file)


def test_the_scripts_numpy_resizes_as_torch_does() -> None:
    generator = np.random.default_rng(0)
    for size in ((7, 5), (3, 9), (20, 33), (41, 8)):
        logits = generator.normal(size=(4, 7, 8)).astype(np.float32)
        full = torch.nn.functional.interpolate(
            torch.from_numpy(logits)[None], size=size, mode="bilinear", align_corners=False
        )
        found = pixel_classes(logits, *size)
        assert (found == full[0].argmax(0).numpy()).all()
    for backend in ("torch", "onnxruntime", "openvino"):
        script = image_script(backend, "pixels")
        compile(script, "example.py", "exec")
        assert "ForSequence" not in script
