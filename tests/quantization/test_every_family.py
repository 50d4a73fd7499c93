"""Each family of architectures.py as ONNX: within 1e-4 of torch, at any batch and length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from hfcompress.models.architectures import FAMILIES
from hfcompress.quantization.backends.onnxruntime import OnnxEngine
from hfcompress.quantization.onnx_export import (
    IMAGE_INPUT,
    TOLERANCE,
    check_against_torch,
    example_inputs,
)
from tests.tiny_images import IMAGE_MODELS, image_model
from tests.tiny_models import IMAGE_FAMILIES, TEXT_FAMILIES, logits, text_model

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)
TEXT_SHAPES = ((1, 3), (2, 12), (5, 23))
IMAGE_SHAPES = ((1, 1), (2, 1), (5, 1))


def classifier(model_type: str) -> Any:
    """A tiny classifier of a family, of texts or of images, with lively weights."""
    if model_type not in IMAGE_FAMILIES:
        return text_model(model_type)
    if model_type in IMAGE_MODELS:
        return image_model(model_type)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16,
        "patch_size": 8, "intermediate_size": 64, "num_labels": 3, "initializer_range": 0.25,
    }  # fmt: skip
    settings = AutoConfig.for_model(model_type, **sizes)
    if model_type == "deit":  # it has two classifiers; the name says which
        settings.architectures = ["DeiTForImageClassification"]
    build: Any = AutoModelForImageClassification.from_config
    model = build(settings)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "relative_position_bias_table", "cls_token")):
            nn.init.normal_(parameter, std=0.1)
    return model.train(False)


def check(model: Any, run: Callable[[Any], Any], engine: str) -> None:
    images = model.main_input_name == IMAGE_INPUT
    for batch, length in IMAGE_SHAPES if images else TEXT_SHAPES:
        inputs = example_inputs(model, batch, length)
        found = run({name: tensor.numpy() for name, tensor in inputs.items()})
        expected = logits(model, inputs).numpy()
        assert found.shape == expected.shape == (batch, 3)
        assert np.abs(found - expected).max() <= 1e-4
        assert np.abs(expected).max() > 0.01
    assert check_against_torch(model, run, engine) <= TOLERANCE == 1e-4


def test_no_family_is_missing() -> None:
    assert set(TEXT_FAMILIES) | IMAGE_FAMILIES == set(FAMILIES)
    assert len(FAMILIES) == len(TEXT_FAMILIES) + len(IMAGE_FAMILIES) == 14


@pytest.mark.parametrize("model_type", FAMILIES)
def test_onnxruntime_computes_what_torch_does(
    model_type: str, exported: Callable[[Any], Path]
) -> None:
    model = classifier(model_type)
    check(model, OnnxEngine(exported(model)).logits, "ONNX Runtime")


def test_onnxruntime_leaves_the_cores_to_others_after_a_call(
    exported: Callable[[Any], Path],
) -> None:
    engine = OnnxEngine(exported(classifier("distilbert")))
    options = engine._session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_openvino_computes_what_torch_does(
    model_type: str, exported: Callable[[Any], Path]
) -> None:
    pytest.importorskip("openvino")
    from hfcompress.quantization.backends.openvino import OpenVinoEngine

    model = classifier(model_type)
    check(model, OpenVinoEngine(exported(model)).logits, "OpenVINO")
