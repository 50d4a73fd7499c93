"""Tiny classifiers of images, with transformers or plain, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoConfig

from tests.tiny_models import Batch, build_classifier

SIDE = 32
_TOKENS: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "patch_size": 8, "image_size": SIDE, "initializer_range": 0.25,
}  # fmt: skip
_IMAGE_SIZES: dict[str, dict[str, Any]] = {
    "resnet": {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    },
    "mobilenet_v2": {"image_size": SIDE, "depth_multiplier": 0.25},
    "efficientnet": {
        "image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 1.0,
        "hidden_dim": 320, "kernel_sizes": [3, 5], "in_channels": [32, 16],
        "out_channels": [16, 24], "depthwise_padding": [], "strides": [1, 2],
        "num_block_repeats": [1, 1], "expand_ratios": [1, 6],
    },
    "convnext": {
        "image_size": SIDE, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1],
        "initializer_range": 0.25, "layer_scale_init_value": 0.5,
    },
    "vit": _TOKENS,
    "deit": _TOKENS,
    "swin": {
        "image_size": SIDE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1],
        "num_heads": [2, 4], "window_size": 4, "initializer_range": 0.25,
    },
}  # fmt: skip
IMAGE_MODELS = tuple(_IMAGE_SIZES)
_CONVNET_SIZES: dict[str, dict[str, Any]] = {
    "resnet": {**_IMAGE_SIZES["resnet"], "depths": [1, 2]},
    "resnet-bottleneck": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]},
    "mobilenet_v2": {
        "depth_multiplier": 0.1, "depth_divisible_by": 4, "min_depth": 4, "image_size": SIDE,
        "finegrained_output": False,
    },
    "convnext": {**_IMAGE_SIZES["convnext"], "patch_size": 2},
    "efficientnet": _IMAGE_SIZES["efficientnet"],
}  # fmt: skip
CONVNETS = tuple(_CONVNET_SIZES)
CONVNETS_AND_GROUPED = (*CONVNETS, "grouped")


def image_model(family: str, seed: int = 0, labels: int = 3, **config: Any) -> Any:
    """A classifier of 3 x 32 x 32 images, with statistics in its norms as training leaves them."""
    torch.manual_seed(seed)
    sizes = {**_IMAGE_SIZES[family], "num_labels": labels, **config}
    model = build_classifier(AutoConfig.for_model(family, **sizes))
    if family == "mobilenet_v2":  # without most blocks that change no shape: exports take seconds
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


class FusedAttention(nn.Module):
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


_PLAIN: dict[str, type[nn.Module]] = {"grouped": Grouped, "fused": FusedAttention}


def convnet(name: str, seed: int = 0) -> Any:
    """A network of `CONVNETS`, or the plain module "grouped" or "fused", with lively weights."""
    torch.manual_seed(seed)
    if name in _PLAIN:
        model: Any = _PLAIN[name]()
    elif name == "efficientnet":
        model = image_model(name, seed)
    else:
        family = name.removesuffix("-bottleneck")
        model = build_classifier(AutoConfig.for_model(family, **_CONVNET_SIZES[name], num_labels=3))
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


# --- batches and rows of images ----------------------------------------------------------------


def image_batches(
    batches: int = 3, rows: int = 6, side: int = SIDE, channels: int = 3
) -> list[Batch]:
    """Random images with random labels, for `image_model`."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "pixel_values": torch.randn(rows, channels, side, side, generator=generator),
            "labels": torch.randint(0, 3, (rows,), generator=generator),
        }
        for _ in range(batches)
    ]


def convnet_batches(name: str, batches: int = 2, rows: int = 8) -> list[Batch]:
    """`image_batches` under the name of the network's input."""
    made = image_batches(batches, rows)
    if name not in _PLAIN:
        return made
    return [{"image": batch["pixel_values"], "labels": batch["labels"]} for batch in made]


def image_rows(count: int = 24, side: int = SIDE) -> list[Batch]:
    """Rows for a Trainer; the label is which third of the image is brightest."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for index in range(count):
        pixels = 0.3 * torch.randn(3, side, side, generator=generator)
        third = side // 3
        pixels[:, index % 3 * third : (index % 3 + 1) * third] += 1.5
        made.append({"pixel_values": pixels, "labels": torch.tensor(index % 3)})
    return made
