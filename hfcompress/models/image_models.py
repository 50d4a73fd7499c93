"""Image models from scratch: a transformers config instead of a checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from hfcompress.config import nearest
from hfcompress.errors import ConfigError, MissingExtraError, first_line

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

# Fields that the data decide, or that transformers writes itself.
_NOT_YOURS = {"num_labels", "id2label", "label2id", "architectures", "transformers_version",
              "dtype", "torch_dtype", "problem_type", "_name_or_path"}  # fmt: skip
_HEADS = {"AutoModelForImageClassification": "image classifier",
          "AutoModelForSemanticSegmentation": "head for segmentation"}  # fmt: skip
_DEFAULT_SIZE = 224
_DEFAULT_CENTRE = 0.5


def new_config(fields: Mapping[str, object], image_size: int | None) -> PreTrainedConfig:
    """A transformers config made of the given fields, whose names are checked.

    Args:
        fields: ``model_type`` and what its config class knows.
        image_size: side of the images in pixels; goes into the config where it has such a field.

    Raises:
        ConfigError: an unknown model type or field, with the nearest right one; two image sizes.
    """
    given = dict(fields)
    kind = given.pop("model_type", None)
    if kind is None:
        raise ConfigError("model.config needs model_type, such as resnet or vit")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        hint = nearest(str(kind), list(CONFIG_MAPPING))
        raise ConfigError(f"model.config.model_type: there is no {kind!r}{hint}")
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[kind]
    build: Callable[..., PreTrainedConfig] = config_class
    known = set(build().to_dict()) | set(config_class.attribute_map)
    for name in given:
        if name in _NOT_YOURS:
            raise ConfigError(f"model.config.{name} comes from the data; leave it out")
        if name not in known:
            hint = nearest(name, sorted(known - _NOT_YOURS))
            raise ConfigError(f"model.config has no field {name!r} for {kind}{hint}")
    sized = "image_size" in known and image_size is not None
    if sized and given.setdefault("image_size", image_size) != image_size:
        raise ConfigError(
            f"model.image_size is {image_size} and model.config.image_size "
            f"{given['image_size']}; write one of them"
        )
    try:
        return build(**given)
    except Exception as error:  # each config class checks its fields in its own way
        raise ConfigError(f"model.config does not fit {kind}: {first_line(error)}") from None


def size_of(config: PreTrainedConfig, image_size: int | None) -> int:
    """Side of the images in pixels: the one given, the config's, or 224."""
    own = getattr(config, "image_size", None)
    own = own[0] if isinstance(own, (list, tuple)) else own
    return int(image_size or own or _DEFAULT_SIZE)


def new_model(
    config: PreTrainedConfig,
    labels: Sequence[str],
    seed: int,
    size: int,
    auto_class: Any = AutoModelForImageClassification,
) -> PreTrainedModel:
    """A randomly initialised model of images that accepts one black image.

    Args:
        config: as `new_config` gives it; its labels are set.
        labels: the data's label names in order.
        seed: of the weights.
        size: side of the images in pixels.
        auto_class: whose head it has.

    Raises:
        ConfigError: a model type without such a head, or sizes that do not fit together.
    """
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    config.architectures = config.architectures or []  # DeiT's Auto class runs through them
    torch.manual_seed(seed)
    try:
        model: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32).eval()
        with torch.inference_mode():
            model(pixel_values=torch.zeros(1, channels_of_config(config), size, size))
    except Exception as error:  # sizes that do not fit show in as many ways as there are families
        if "Unrecognized configuration class" in str(error):
            head = _HEADS[auto_class.__name__]
            raise ConfigError(
                f"model.config.model_type {config.model_type!r} has no {head} in "
                f"transformers; models of text start from a checkpoint: give model a path"
            ) from None
        raise ConfigError(
            f"{config.model_type} config is invalid for {size}x{size} images: {first_line(error)}"
        ) from None
    return model


def channels_of_config(config: PreTrainedConfig) -> int:
    """How many channels a model's images have."""
    return int(getattr(config, "num_channels", 3))


def plain_processor(
    size: int,
    channels: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    masks: bool = False,
) -> BaseImageProcessor:
    """An image processor that resizes and normalises, for a model that has none.

    Args:
        size: side of the images in pixels.
        channels: 1 for grey images, 3 for colours.
        mean, std: by channel, of values from 0 to 1; one half each by default.
        masks: it also makes masks of a segmentation model's logits.

    Raises:
        ConfigError: not one mean or deviation for each channel.
    """
    from transformers import SegformerImageProcessorPil, ViTImageProcessorPil

    centre = {"image_mean": mean, "image_std": std}
    for name, values in centre.items():
        if values is not None and len(values) != channels:
            raise ConfigError(
                f"model.{name} has {len(values)} values and the model reads {channels} "
                f"channels; write one for each"
            )
    even = [_DEFAULT_CENTRE] * channels
    kind = SegformerImageProcessorPil if masks else ViTImageProcessorPil
    return kind(
        size={"height": size, "width": size},
        image_mean=list(mean or even),
        image_std=list(std or even),
    )


class _TimmConfig(TypedDict, total=False):
    input_size: Sequence[int]
    crop_pct: float
    interpolation: str
    mean: Sequence[float]
    std: Sequence[float]


def timm_processor(config: PreTrainedConfig) -> BaseImageProcessor:
    """An image processor that does what timm's evaluation transform does, without torchvision.

    Args:
        config: the config of transformers' wrapper of timm models.
    """
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    pretrained = cast(_TimmConfig, getattr(config, "pretrained_cfg", None) or {})
    side = int((pretrained.get("input_size") or (3, _DEFAULT_SIZE, _DEFAULT_SIZE))[-1])
    filters = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
    return BitImageProcessorPil(
        size={"shortest_edge": math.floor(side / float(pretrained.get("crop_pct") or 0.875))},
        crop_size={"height": side, "width": side},
        resample=filters.get(pretrained.get("interpolation", "bicubic"), 3),
        image_mean=list(pretrained.get("mean") or [0.485, 0.456, 0.406]),
        image_std=list(pretrained.get("std") or [0.229, 0.224, 0.225]),
    )


def fingerprint_new(config: PreTrainedConfig, processor: BaseImageProcessor) -> str:
    """A hash of what decides a new model besides labels and seed."""
    shape = {name: value for name, value in config.to_dict().items() if name not in _NOT_YOURS}
    content = [shape, processor.to_dict()]
    return (
        "new-"
        + hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:28]
    )


@contextmanager
def timm_named(name: str) -> Iterator[None]:
    """Convert transformers' ImportError for a missing timm into a `MissingExtraError`.

    Args:
        name: of the model, for the message.
    """
    try:
        yield
    except ImportError as error:
        if "timm" not in str(error):
            raise
        raise MissingExtraError(
            f"model {name!r} needs timm, which is not installed; write: pip install timm"
        ) from None
