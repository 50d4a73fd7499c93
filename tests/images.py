"""Tiny classifiers of images of several families, lively enough for small errors to show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

SIDE = 32
CONVOLUTIONAL = ("resnet", "mobilenet_v2", "efficientnet", "convnext")
FAMILIES = (*CONVOLUTIONAL, "vit", "deit", "swin")
_TOKENS: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "patch_size": 8, "image_size": SIDE, "initializer_range": 0.25,
}  # fmt: skip
_SIZES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "vit": (ViTConfig, ViTForImageClassification, _TOKENS),
    "deit": (DeiTConfig, DeiTForImageClassification, _TOKENS),
    "swin": (SwinConfig, SwinForImageClassification, {
        "image_size": SIDE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1],
        "num_heads": [2, 4], "window_size": 4, "initializer_range": 0.25,
    }),
    "resnet": (ResNetConfig, ResNetForImageClassification, {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    }),
    "mobilenet_v2": (MobileNetV2Config, MobileNetV2ForImageClassification, {
        "image_size": SIDE, "depth_multiplier": 0.25,
    }),
    "convnext": (ConvNextConfig, ConvNextForImageClassification, {
        "image_size": SIDE, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1],
        "initializer_range": 0.25, "layer_scale_init_value": 0.5,
    }),
    "efficientnet": (EfficientNetConfig, EfficientNetForImageClassification, {
        "image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 1.0,
        "hidden_dim": 320, "kernel_sizes": [3, 5], "in_channels": [32, 16],
        "out_channels": [16, 24], "depthwise_padding": [], "strides": [1, 2],
        "num_block_repeats": [1, 1], "expand_ratios": [1, 6],
    }),
}  # fmt: skip


def image_model(family: str, seed: int = 0, labels: int = 3, **config: Any) -> Any:
    """A classifier of 3 x 32 x 32 images, with statistics in its norms as training leaves them."""
    torch.manual_seed(seed)
    settings, kind, sizes = _SIZES[family]
    model = kind(settings(**{**sizes, "num_labels": labels, **config}))
    if family == "mobilenet_v2":  # without the blocks that change no shape: exports cost seconds
        layers = model.mobilenet_v2.layer
        residual = next(layer for layer in layers if layer.use_residual)
        kept = [layer for layer in layers if not layer.use_residual or layer is residual]
        model.mobilenet_v2.layer = nn.ModuleList(kept)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    for name, parameter in model.named_parameters():
        if "classifier" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def image_batches(
    batches: int = 3, rows: int = 6, side: int = SIDE, channels: int = 3
) -> list[dict[str, Tensor]]:
    """Random images with random labels."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "pixel_values": torch.randn(rows, channels, side, side, generator=generator),
            "labels": torch.randint(0, 3, (rows,), generator=generator),
        }
        for _ in range(batches)
    ]


def image_rows(count: int = 24, side: int = SIDE) -> list[dict[str, Tensor]]:
    """Rows for a Trainer; the label is which third of the image is brightest."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for index in range(count):
        pixels = 0.3 * torch.randn(3, side, side, generator=generator)
        third = side // 3
        pixels[:, index % 3 * third : (index % 3 + 1) * third] += 1.5
        made.append({"pixel_values": pixels, "labels": torch.tensor(index % 3)})
    return made
