"""Exports cost seconds: each model is exported once, and the tests share the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfcompress.models.loading import weights_hash
from hfcompress.quantization.images import ImageShape
from hfcompress.quantization.onnx_export import export_onnx


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model (and the shape of its images) -> its ONNX file; equal models share one."""
    root = tmp_path_factory.mktemp("exports")

    def give(model: Any, image: ImageShape | None = None) -> Path:
        shape = "".join(f"-{size}" for size in image or ())
        path = root / f"{type(model).__name__}-{weights_hash(model)}{shape}.onnx"
        return path if path.exists() else export_onnx(model, path, image)

    return give


@pytest.fixture
def shared_exports(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends take the shared files instead of exporting anew."""

    def copied(
        model: Any, path: Path, image: ImageShape | None = None, one_file: bool = True
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(exported(model, image), path))

    for backend in ("onnxruntime", "openvino"):
        monkeypatch.setattr(f"hfcompress.quantization.backends.{backend}.export_onnx", copied)
