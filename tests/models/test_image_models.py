"""Image models from scratch: checked by name, drawn by a seed, read by the processor that fits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, PreTrainedConfig, ViTImageProcessorPil

from hfcompress.data.image_processors import check_same_images, image_side, like_teacher
from hfcompress.errors import ConfigError, MissingExtraError, ModelError
from hfcompress.models.image_models import timm_processor
from hfcompress.models.loading import LoadedModel, ModelConfig, load_model
from hfcompress.tasks.image_classification import IMAGE_CLASSIFICATION
from hfcompress.tasks.text_classification import TEXT_CLASSIFICATION

TASK = IMAGE_CLASSIFICATION
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
          "layer_type": "basic", "num_channels": 1}  # fmt: skip
VIT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
       "intermediate_size": 16, "patch_size": 4}  # fmt: skip


def make(config: dict[str, Any], seed: int = 0, **more: Any) -> LoadedModel:
    return load_model(ModelConfig(config=config, **more), TASK, ["no", "yes", "so"], seed)


def test_a_model_with_its_labels_and_processor() -> None:
    made = make(RESNET, image_size=20, image_mean=[0.25], image_std=[0.5])
    assert made.new_head
    assert not made.model.training
    assert made.model.config.id2label == {0: "no", 1: "yes", 2: "so"}
    picture = Image.fromarray(np.full((9, 11), 255, np.uint8))
    pixels = made.processor(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 1, 20, 20)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 1.5))
    assert made.model(pixel_values=pixels).logits.shape == (1, 3)


def test_the_image_size_reaches_the_config() -> None:
    assert make(VIT, image_size=12).model.config.image_size == 12
    sized = make({**VIT, "image_size": 8})
    assert image_side(sized.processor) == 8
    assert image_side(make(RESNET).processor) == 224


def test_the_seed_draws_the_weights() -> None:
    first, same, other = (make(VIT, seed, image_size=8) for seed in (0, 0, 1))
    weight = [made.model.get_parameter("classifier.weight") for made in (first, same, other)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])


def test_the_fingerprint_is_what_was_asked_for() -> None:
    plain = make(VIT, image_size=8).fingerprint
    assert plain == make({**VIT, "image_size": 8}, seed=3).fingerprint
    assert plain == make({**VIT, "num_channels": 3}, image_size=8).fingerprint
    others = [
        make(VIT, image_size=12),
        make({**VIT, "hidden_size": 32}, image_size=8),
        make(VIT, image_size=8, image_mean=[0.4, 0.5, 0.5]),
    ]
    assert len({plain, *(made.fingerprint for made in others)}) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": {**VIT, "hiden_size": 8}}, "no field 'hiden_size' for vit; did you mean 'hid"),
        ({"config": {**VIT, "model_type": "vitt"}}, "there is no 'vitt'; did you mean 'vit'?"),
        ({"config": {"hidden_size": 8}}, "model.config needs model_type"),
        ({"config": {**VIT, "num_labels": 8}}, "model.config.num_labels comes from the data"),
        ({"config": {**VIT, "hidden_size": "big"}}, "model.config does not fit vit"),
        ({"config": {**VIT, "image_size": 8}, "image_size": 9}, "write one of them"),
        ({"config": VIT, "path": "x"}, "not both"),
        ({}, "write path, for a checkpoint, or config"),
    ],
)
def test_mistakes_show_before_anything_is_made(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        ({"model_type": "bert"}, {}, "'bert' has no image classifier in transformers"),
        (
            {**RESNET, "hidden_act": "x"},
            {"image_size": 8},
            "resnet config is invalid for 8x8 images",
        ),
        (VIT, {"image_mean": [0.5]}, "image_mean has 1 values and the model reads 3 channels"),
    ],
)
def test_what_cannot_be_made(config: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(config, **more)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_texts_start_from_a_checkpoint() -> None:
    with pytest.raises(ConfigError, match="needs the tokenizer of a checkpoint"):
        load_model(ModelConfig(config={"model_type": "bert"}), TEXT_CLASSIFICATION, ["a", "b"])


@pytest.mark.parametrize("model_type", ["vit", "deit"])
def test_what_is_saved_is_what_comes_back(model_type: str, tmp_path: Path) -> None:
    made = make({**VIT, "model_type": model_type}, image_size=8)
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    again = load_model(ModelConfig(path=str(tmp_path)), TASK, ["no", "yes", "so"])
    assert not again.new_head
    pixels = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again.model(pixels).logits, made.model(pixels).logits)
    assert again.processor.to_dict() == made.processor.to_dict()


def test_checkpoints_without_a_fitting_processor(tmp_path: Path) -> None:
    build: Any = AutoModelForImageClassification.from_config
    build(make(RESNET).model.config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json"):
        load_model(ModelConfig(path=str(tmp_path)), TASK)
    own = load_model(ModelConfig(path=str(tmp_path), image_size=16), TASK).processor
    assert (image_side(own), list(own.image_mean)) == (16, [0.5])
    ViTImageProcessorPil(image_mean=[0.2, 0.3, 0.4]).save_pretrained(tmp_path)
    grey = load_model(ModelConfig(path=str(tmp_path)), TASK).processor
    assert grey.image_mean == [pytest.approx(0.3)]


def test_timm_where_it_is_not_installed(tmp_path: Path) -> None:
    if importlib.util.find_spec("timm"):
        pytest.skip("timm is installed")
    told = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {"crop_pct": 0.9}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(MissingExtraError, match="is not installed; write: pip install timm"):
        load_model(ModelConfig(path=str(tmp_path)), TASK)


def test_images_for_timm_models() -> None:
    told = {"input_size": [3, 20, 20], "crop_pct": 0.8, "mean": [0.5] * 3, "std": [0.25] * 3}
    config = PreTrainedConfig.from_dict({"pretrained_cfg": {**told, "interpolation": "bilinear"}})
    picture = Image.fromarray(np.full((50, 40, 3), 255, np.uint8))
    pixels = timm_processor(config)(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, torch.full((1, 3, 20, 20), 2.0))
    noise = np.random.default_rng(0).integers(0, 256, (25, 25, 3), np.uint8)
    found = timm_processor(config)(Image.fromarray(noise), return_tensors="pt")["pixel_values"]
    middle = torch.from_numpy(noise[2:22, 2:22] / 255).float().permute(2, 0, 1)
    torch.testing.assert_close(found[0], (middle - 0.5) / 0.25)


def test_a_student_reads_what_its_teacher_reads() -> None:
    teacher = make(RESNET, image_size=20, image_mean=[0.25], image_std=[0.5]).processor
    open_fields = {name: value for name, value in RESNET.items() if name != "num_channels"}
    found = like_teacher(ModelConfig(config=open_fields), teacher)
    student = load_model(found, TASK, ["a", "b"])
    check_same_images("s", student.processor, teacher)
    assert student.model(pixel_values=torch.zeros(1, 1, 20, 20)).logits.shape == (1, 2)
    own = load_model(like_teacher(ModelConfig(config=VIT, image_size=8), teacher), TASK)
    with pytest.raises(ModelError, match=r"reads images with size .*8.* and the teacher with .*20"):
        check_same_images("s", own.processor, teacher)
    colour = make({**RESNET, "num_channels": 3}, image_size=20).processor
    with pytest.raises(ModelError, match="with image_mean"):
        check_same_images("s", colour, teacher)
