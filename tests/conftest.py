"""Fixtures of every test: no network, a folder with a tiny model, files of learnable sentences."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from hfcompress.measure.environment import has_fast_int8
from tests.exports import fill_template, keep_template, structure_of
from tests.saturating import SATURATING
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import sentence, tiny_tokenizer

# The same examples in every run, and none kept from another one.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
hypothesis.settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if has_fast_int8():
        return
    for item in items:
        room, name = item.path.parent.name, item.name.partition("[")[0]
        int8 = room in ("quantization", "benchmarking") or "quantize" in item.path.name
        if int8 and name in SATURATING:
            item.add_marker(pytest.mark.skip(reason="8-bit sums saturate on this processor"))


_frozen_modules = 0
_caches = itertools.count()


def _quicken() -> None:
    """Share ONNX's table of operations, and leave the memory of GPUs alone.

    torch 2.13, 2026-11: each export reads the source of 500 operations anew, which takes longer
    than exporting a small network, and the cache of shapes takes longer than it saves.
    """
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    if exporter is not None and not hasattr(exporter.ONNXRegistry.from_torchlib, "cache_info"):
        table = functools.cache(exporter.ONNXRegistry.from_torchlib)
        exporter.ONNXRegistry.from_torchlib = staticmethod(table)
    if (compiler := sys.modules.get("torch._dynamo.config")) is not None:
        compiler.fake_tensor_cache_enabled = False
    if (memory := sys.modules.get("accelerate.utils.memory")) is not None:
        vars(memory)["clear_device_cache"] = lambda garbage_collection=False: None


@pytest.fixture(autouse=True)
def _frozen_libraries() -> None:
    """Exclude the imported libraries from garbage collection, which every Trainer runs in full.

    Scanning them takes longer than training a tiny model. Most are imported by a test, when it
    first needs them, so the next test excludes them. What tests make is collected more rarely
    than by default, which is a tenth of the processor time of a test.
    """
    global _frozen_modules
    if len(sys.modules) > _frozen_modules:
        _frozen_modules = len(sys.modules)
        _quicken()
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 20, 20)


@pytest.fixture(autouse=True)
def _no_network_no_waiting(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """No hub, a step cache of the test's own, and no more rounds of timing than asked for.

    The cache lies in the test's ``tmp_path``; where it has none, making one would take longer than
    most tests, so the cache's own folder is made by what fills it.
    """
    import huggingface_hub.constants

    from hfcompress.sweep import timing

    if "tmp_path" in request.fixturenames:
        cache = request.getfixturevalue("tmp_path") / "cache"
    else:
        cache = tmp_path_factory.getbasetemp() / "caches" / str(next(_caches))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HFCOMPRESS_CACHE", str(cache))
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    torch.default_generator.manual_seed(0)


@pytest.fixture
def drawn_pictures() -> None:
    """A test that asks for this gets the pictures of its reports as a user does."""


@pytest.fixture(autouse=True)
def _blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose the pictures of reports, and save a white one in the place of each.

    Laying out and drawing a run's pictures takes longer than a tiny run. They are drawn for
    tests/report and for tests that ask for `drawn_pictures`.
    """
    if request.path.parent.name == "report" or "drawn_pictures" in request.fixturenames:
        return
    from PIL import Image

    from hfcompress.report.plotting import PlainFigure

    def save(figure: PlainFigure, file: Any, **_: object) -> None:
        Image.new("RGB", (8, 8), "white").save(file, format="png")

    monkeypatch.setattr(PlainFigure, "savefig", save)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder as ``save_pretrained`` leaves it: tiny BERT and tokenizer."""
    folder = tmp_path / "model"
    tiny_bert().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def write_data(tmp_path: Path) -> Callable[..., Path]:
    """Writes a TSV of learnable sentences: ``write_data("train.tsv", rows=100)``."""

    def write(name: str = "data.tsv", rows: int = 60, header: bool = True, seed: int = 0) -> Path:
        generator = random.Random(seed)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["sentence\tlabel"] if header else []
        for index in range(rows):
            lines.append(f"{sentence(generator, index % 2 == 1)}\t{index % 2}")
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the ONNX file of a model: ``exported(model, image)``; equal models share one.

    Models of one structure share a graph. The files lie where all workers of pytest-xdist find
    them.
    """
    from hfcompress.models.loading import weights_hash
    from hfcompress.quantization.images import image_shape
    from hfcompress.quantization.onnx_export import export_onnx

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def give(model: Any, image: Any = None, one_file: bool = True) -> Path:
        image = image or image_shape(model)
        structure = structure_of(model, image=image, one_file=one_file)
        template = root / "exports" / f"{type(model).__name__}-{structure}"
        path = template / weights_hash(model) / "model.onnx"
        shares = one_file and hasattr(model, "config")  # any other module may compute anything
        if path.exists() or (shares and fill_template(template, model, path)):
            return path
        export_onnx(model, path, image, one_file)
        if shares:
            keep_template(path, model, template)
        return path

    return give


@pytest.fixture
def shared_exports(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends take the files of `exported` instead of exporting anew."""

    def copied(model: Any, path: Path, image: Any = None, one_file: bool = True) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(exported(model, image), path))

    for backend in ("onnxruntime", "openvino"):
        monkeypatch.setattr(f"hfcompress.quantization.backends.{backend}.export_onnx", copied)
