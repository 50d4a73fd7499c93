"""A tiny convolutional network of every family, and one with all that families do not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    MobileNetV2Config,
    ResNetConfig,
)

from tests.images import image_model

SIDE = 32
FAMILIES = ("resnet", "resnet-bottleneck", "mobilenet_v2", "convnext", "efficientnet")
NETWORKS = (*FAMILIES, "grouped")


class Grouped(nn.Module):
    """Group norm, grouped and depthwise convolutions, a concatenation, a flattened Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, stride=2)
        self.norm = nn.GroupNorm(4, 16)
        self.grouped = nn.Conv2d(16, 24, 3, groups=4, padding=1, stride=2)
        self.batchnorm = nn.BatchNorm2d(24)
        self.narrow = nn.Conv2d(24, 8, 3, groups=2, bias=False, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, groups=24, padding=1)
        self.last = nn.Conv2d(32, 6, 1)
        self.classifier = nn.Linear(6 * 8 * 8, 3)

    def forward(self, image: Tensor) -> Tensor:
        wide = self.batchnorm(self.grouped(self.norm(self.stem(image)).relu())).relu()
        both = torch.cat([self.narrow(wide), self.depthwise(wide)], 1).relu()
        logits: Tensor = self.classifier(self.last(both).relu().flatten(1))
        return logits


class Fused(nn.Module):
    """A vision transformer as timm writes one: a Linear makes queries, keys and values at once."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.classifier = nn.Linear(width, 3)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        tokens = tokens + self.attention(self.norm1(tokens))
        tokens = tokens + self.fc2(self.fc1(self.norm2(tokens)).relu())
        logits: Tensor = self.classifier(tokens.mean(1))
        return logits

    def attention(self, tokens: Tensor) -> Tensor:
        rows, length, width = tokens.shape
        parts = self.qkv(tokens).reshape(rows, length, 3, self.heads, width // self.heads)
        mixed = nn.functional.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4).unbind(0))
        found: Tensor = self.proj(mixed.transpose(1, 2).reshape(rows, length, width))
        return found


PLAIN: dict[str, type[nn.Module]] = {"grouped": Grouped, "fused": Fused}
"""Networks that are no transformers model."""


def convnet(name: str, seed: int = 0) -> Any:
    """A classifier of three classes with random lively weights and batch norms."""
    torch.manual_seed(seed)
    labels: Any = {"num_labels": 3}
    configs: dict[str, Any] = {
        "resnet": lambda: ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", **labels
        ),
        "resnet-bottleneck": lambda: ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], **labels
        ),
        "mobilenet_v2": lambda: MobileNetV2Config(
            depth_multiplier=0.1, depth_divisible_by=4, min_depth=4, image_size=SIDE,
            finegrained_output=False, **labels
        ),
        "convnext": lambda: ConvNextConfig(
            hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=SIDE,
            layer_scale_init_value=0.5, initializer_range=0.25, **labels
        ),
    }  # fmt: skip
    if name in PLAIN:
        model: Any = PLAIN[name]()
    elif name == "efficientnet":
        model = image_model(name, seed)
    else:
        build: Any = AutoModelForImageClassification.from_config
        model = build(configs[name]())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images(network: str, batches: int = 2, rows: int = 8) -> list[dict[str, Tensor]]:
    """Random labelled batches."""
    generator = torch.Generator().manual_seed(1)
    key = "image" if network in PLAIN else "pixel_values"
    return [
        {
            key: torch.randn(rows, 3, SIDE, SIDE, generator=generator),
            "labels": torch.randint(0, 3, (rows,), generator=generator),
        }
        for _ in range(batches)
    ]
