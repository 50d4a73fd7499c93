"""Tasks are found by name, by synonym and by checkpoint; everything else is refused by name."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import transformers
from transformers import BartConfig, BertConfig, PreTrainedConfig, ViTConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from hfcompress.errors import ConfigError, ModelError
from hfcompress.tasks.registry import TASKS, find_task, infer_task

WITH_HEADS = [name for name in TASKS if name not in ("sentence-similarity", "text-ranking")]


def of_class(name: str) -> PreTrainedConfig:
    return BertConfig(architectures=[name])


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("text-classification", "text-classification"),
        ("sequence-classification", "text-classification"),
        ("sentiment-analysis", "text-classification"),
        ("image-classification", "image-classification"),
        ("token-classification", "token-classification"),
        ("ner", "token-classification"),
        ("question-answering", "question-answering"),
        ("masked-lm", "fill-mask"),
        ("semantic-segmentation", "image-segmentation"),
    ],
)
def test_finds_tasks_by_name_and_by_synonym(name: str, task: str) -> None:
    assert find_task(name).name == task


def test_refuses_unknown_tasks_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'text-classification'"):
        find_task("text-clasification")
    with pytest.raises(
        ConfigError, match="known are: fill-mask, image-classification, image-segmentation, quest"
    ):
        find_task("summarization")


@pytest.mark.parametrize("name", WITH_HEADS)
def test_every_class_of_a_task_is_known_by_its_name(name: str) -> None:
    mappings: dict[str, Mapping[str, object]] = {
        "text-classification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "image-classification": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "token-classification": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "question-answering": MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        "fill-mask": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "image-segmentation": MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    }
    mapping = mappings[name]
    classes = [found for found in mapping.values() if isinstance(found, str)]
    if name == "fill-mask":  # encoder-decoders and XLM's classes serve other tasks, too
        classes = [found for found in classes if found.endswith("ForMaskedLM")]
    assert len(classes) > (8 if name == "image-segmentation" else 25)
    assert {infer_task(of_class(found), "m").name for found in classes} == {name}


def test_an_encoder_without_a_head_gives_vectors() -> None:
    assert infer_task(of_class("BertModel"), "m").name == "sentence-similarity"
    with pytest.raises(ModelError, match="is a ViTModel"):
        infer_task(ViTConfig(architectures=["ViTModel"]), "m")
    with pytest.raises(ModelError, match="is a BartModel"):
        infer_task(BartConfig(architectures=["BartModel"]), "m")


def test_refuses_checkpoints_of_other_tasks() -> None:
    with pytest.raises(ModelError, match=r"BertForMultipleChoice \(multiple-choice\)"):
        infer_task(of_class("BertForMultipleChoice"), "m")
    with pytest.raises(ModelError, match="names no architectures"):
        infer_task(PreTrainedConfig(), "m")
    with pytest.raises(ModelError, match="model 'm' is a TheirOwnThing; supported are"):
        infer_task(of_class("TheirOwnThing"), "m")


@pytest.mark.parametrize("name", WITH_HEADS)
def test_the_auto_class_is_the_one_of_transformers(name: str) -> None:
    auto = TASKS[name].auto_class()
    assert getattr(transformers, auto.__name__) is auto
