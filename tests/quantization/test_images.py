"""Classifiers of images: exported with norms folded, quantized statically, reported on truly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hfcompress import Calibration, PruningConfig, ShrinkConfig, prune, shrink
from hfcompress.errors import CalibrationError, TargetError
from hfcompress.models.architectures import compressible_modules
from hfcompress.quantization.backends.onnxruntime import OnnxEngine
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import folded_norms
from hfcompress.quantization.images import image_shape
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.onnx_export import check_against_torch
from hfcompress.quantization.quantize import quantize
from tests.tiny_images import IMAGE_MODELS, image_batches, image_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("shared_exports")
SHAPE = (3, 32, 32)


def make(family: str = "resnet", model: Any = None, **options: Any) -> QuantizedModel:
    config = QuantizationConfig(**options)
    pytest.importorskip(config.backend)
    return quantize(model or image_model(family), config, image_batches())


def change(quantized: QuantizedModel, model: Any) -> float:
    """The largest difference of a logit from the fp32 model's, by the largest logit."""
    batch = image_batches()[0]
    with torch.no_grad():
        expected = model(batch["pixel_values"]).logits
    found: Any = quantized(**batch).logits
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("family", IMAGE_MODELS)
def test_exports_equal_torch_with_norms_folded_and_every_weight_named(
    family: str, exported: Callable[..., Path]
) -> None:
    model = image_model(family)
    (batch, *_) = image_batches()
    with torch.no_grad():
        expected = model(batch["pixel_values"]).logits
    assert expected.abs().max() > 0.1  # lively enough for an error to show
    path = exported(model, SHAPE)
    assert check_against_torch(model, OnnxEngine(path).logits, "ONNX Runtime", SHAPE) <= 1e-4
    found = OnnxEngine(path).logits({"pixel_values": batch["pixel_values"].numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4 * float(expected.abs().max()))
    nodes = {node.name: node.op_type for node in onnx.load(str(path)).graph.node}
    assert "BatchNormalization" not in nodes.values()
    assert set(compressible_modules(model)) <= set(nodes)


@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_networks_that_lost_channels_export(family: str, exported: Callable[..., Path]) -> None:
    model = image_model(family)
    before = sum(parameter.numel() for parameter in model.parameters())
    shrink(model, ShrinkConfig(macs=0.5, score="magnitude"), Calibration(image_batches()))
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.8 * before
    path = exported(model, SHAPE)
    assert check_against_torch(model, OnnxEngine(path).logits, "ONNX Runtime", SHAPE) <= 1e-4


def test_a_network_without_a_size_of_its_own_reads_any(exported: Callable[..., Path]) -> None:
    model = image_model("resnet")
    assert image_shape(model) is None
    assert image_shape(model, image_batches(side=20)) == (3, 20, 20)
    assert image_shape(image_model("vit")) == (3, 32, 32)
    engine = OnnxEngine(exported(model))
    for shape in ((1, 3, 28, 28), (2, 3, 40, 64)):
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = model(pixels).logits.numpy()
        np.testing.assert_allclose(
            engine.logits({"pixel_values": pixels.numpy()}), expected, atol=1e-4
        )


def test_folded_norms_are_those_behind_a_convolution() -> None:
    model = image_model("resnet")
    batch = {"pixel_values": image_batches()[0]["pixel_values"]}
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert folded_norms(model, batch) == norms
    assert len(norms) == 6

    class Before(nn.Module):
        """A norm before its convolution cannot be folded into it."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.convolution = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.convolution(self.norm(pixel_values))
            return made

    assert folded_norms(Before(), batch) == set()


@pytest.mark.parametrize("family", ["resnet", "mobilenet_v2", "efficientnet"])
def test_auto_is_static_for_networks_of_convolutions(family: str) -> None:
    model = image_model(family)
    found = make(family)
    assert found.config.resolved_mode == "static"
    assert 0 < change(found, model) < 0.1
    rows = {row.name: row for row in found.coverage.modules}
    weights = compressible_modules(model)
    assert all(rows[name].quantized for name in weights)
    assert found.coverage.share_of_macs == 1.0
    total = sum(parameter.numel() for parameter in model.parameters())
    integers = sum(module.get_parameter("weight").numel() for module in weights.values())
    assert found.coverage.share_of_bytes == pytest.approx(integers / total)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert rows[name].why == "folded into the convolution before it"


def test_a_vit_is_dynamic_by_default_and_near_torch() -> None:
    found = make("vit")
    assert found.config.resolved_mode == "dynamic"
    assert 0 < change(found, image_model("vit")) < 0.15
    rows = {row.name: row for row in found.coverage.modules}
    patches = rows["vit.embeddings.patch_embeddings.projection"]
    assert not patches.quantized
    assert "dynamic quantization does nothing for convolutions" in patches.why
    assert rows["classifier"].quantized
    assert found.notes == () or "VNNI" in found.notes[0]


def test_a_convnext_keeps_most_weights_in_linears() -> None:
    assert make("convnext").config.resolved_mode == "dynamic"
    found = make("convnext", mode="static")
    assert 0 < change(found, image_model("convnext")) < 0.15
    assert found.coverage.share_of_macs == 1.0


def test_weights_are_the_folded_ones_rounded_by_channel() -> None:
    model = image_model("resnet")
    engine: Any = make().engine
    tensors = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in onnx.load(str(engine.path)).graph.initializer
    }
    name = "resnet.encoder.stages.1.layers.0.layer.0"
    layer: Any = model.get_submodule(name)
    norm = layer.normalization
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    folded = (layer.convolution.weight.double() * scale.view(-1, 1, 1, 1)).detach().numpy()
    step = np.abs(folded).reshape(len(folded), -1).max(1) / 127
    weight = f"{name}.convolution.weight"
    np.testing.assert_allclose(tensors[f"{weight}_scale"], step, rtol=1e-4)
    integers = tensors[f"{weight}_quantized"].astype(np.float64)
    assert np.abs(integers - folded / step.reshape(-1, 1, 1, 1)).max() <= 0.5 + 1e-2


@pytest.mark.parametrize("calibrate", ["percentile", "entropy"])
def test_the_way_of_calibrating_changes_convolutions(calibrate: str) -> None:
    options = {"mode": "static", "calibrate": calibrate}
    if calibrate == "percentile":
        options["percentile"] = 99.0  # type: ignore[assignment]
    found, plain = make(**options), make(mode="static")
    batch = image_batches()[0]
    assert not np.array_equal(found.logits(batch), plain.logits(batch))
    assert change(found, image_model("resnet")) < 0.3


def test_convolutions_in_openvino() -> None:
    pytest.importorskip("nncf")
    found = make(backend="openvino", exclude=("classifier.1",))
    assert 0 < change(found, image_model("resnet")) < 0.1
    left = {row.name: row.why for row in found.coverage.modules if not row.quantized}
    norms = [name for name in left if name.endswith("normalization")]
    assert left.pop("classifier.1") == "excluded by the config"
    assert set(left) == set(norms)
    assert set(left.values()) == {"folded into the convolution before it"}


def test_pruned_networks_keep_their_zeros() -> None:
    model = image_model("resnet")
    prune(model, PruningConfig(sparsity=0.5))
    found = make(model=model)
    assert 0 < change(found, model) < 0.1
    engine: Any = found.engine
    name = "resnet.encoder.stages.0.layers.0.layer.0.convolution"
    (integers,) = [
        onnx.numpy_helper.to_array(item)
        for item in onnx.load(str(engine.path)).graph.initializer
        if item.name == f"{name}.weight_quantized"
    ]
    zeros = model.get_submodule(name).get_parameter("weight") == 0
    assert zeros.float().mean() > 0.3
    assert (integers[zeros.numpy()] == 0).all()


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_dynamic_int8_of_convolutions_is_said_to_do_nothing(backend: str) -> None:
    found = make(backend=backend, mode="dynamic")
    assert found.coverage.share_of_bytes < 0.1
    note = found.notes[-1]
    assert "99% of the weights are convolutions and stay in fp32" in note
    assert "dynamic quantization does nothing for convolutions" in note
    assert any("does nothing for convolutions" in reason for reason in found.coverage.reasons)


def test_nothing_to_calibrate_with() -> None:
    with pytest.raises(CalibrationError, match=r"99% of its weights in convolutions, and dynamic"):
        quantize(image_model("resnet"), QuantizationConfig())


def test_convolutions_alone_are_not_quantized_dynamically() -> None:
    model = image_model("resnet")
    model.classifier = nn.Flatten()
    with pytest.raises(TargetError, match="has no Linear to quantize, and dynamic quantization"):
        quantize(model, QuantizationConfig(mode="dynamic"))
    with pytest.raises(TargetError, match="has no Linear to quantize, and dynamic quantization"):
        quantize(model, QuantizationConfig(backend="torchao"))
    assert make(model=model).coverage.share_of_macs == 1.0
