"""What classification reads and refuses."""

from __future__ import annotations

import pytest
from transformers import BertConfig, PreTrainedConfig

from hfcompress.errors import ModelError
from hfcompress.tasks.image_classification import IMAGE_CLASSIFICATION
from hfcompress.tasks.text_classification import TEXT_CLASSIFICATION


def head(problem_type: str | None, labels: int) -> PreTrainedConfig:
    return BertConfig.from_dict({"problem_type": problem_type, "num_labels": labels})


@pytest.mark.parametrize(
    ("problem_type", "labels", "says"),
    [
        ("multi_label_classification", 3, "gives several labels for an example"),
        ("regression", 1, "gives a number"),
        (None, 1, "gives a single logit"),
        ("ranking", 2, "unknown problem_type 'ranking'"),
    ],
)
def test_refuses_heads_that_answer_another_question(
    problem_type: str | None, labels: int, says: str
) -> None:
    config = head(problem_type, labels)
    with pytest.raises(ModelError, match=says):
        TEXT_CLASSIFICATION.check_head(config, "m")


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_takes_heads_of_several_classes(problem_type: str | None) -> None:
    config = head(problem_type, 3)
    TEXT_CLASSIFICATION.check_head(config, "m")
    IMAGE_CLASSIFICATION.check_head(config, "m")


def test_recalls_are_shown_from_three_classes_on() -> None:
    labels, right = [0, 1, 2, 2], [0, 1, 2, 0]
    found = TEXT_CLASSIFICATION.by_class(right, labels, labels, ["a", "b", "c"])
    assert [(item["name"], item["value"], item["dense"]) for item in found] == [
        ("a", 1.0, 1.0), ("b", 1.0, 1.0), ("c", 0.5, 1.0),
    ]  # fmt: skip
    assert TEXT_CLASSIFICATION.by_class([0, 1], [0, 1], [0, 1], ["a", "b"]) == []
