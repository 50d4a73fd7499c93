"""What logits mean: scores and rankings are those of ``transformers.pipeline``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, softmax
from transformers import pipeline

from hfcompress.tasks.outputs import OutputKind, label_scores, output_kind, ranked_labels
from hfcompress.tasks.text_classification import TEXT_CLASSIFICATION
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

LOGITS = arrays(np.float32, (3, 4), elements=st.floats(-200, 200, width=32))


@given(LOGITS)
def test_scores_follow_the_kind_without_overflow(logits: np.ndarray) -> None:
    with np.errstate(all="raise", under="ignore"):
        single, several = (
            label_scores(logits, "classification"),
            label_scores(logits, "multi_label"),
        )
    np.testing.assert_allclose(single, softmax(logits.astype(float), axis=1), atol=1e-6)
    np.testing.assert_allclose(several, expit(logits.astype(float)), atol=1e-6)
    np.testing.assert_array_equal(label_scores(logits, "regression"), logits)


@pytest.mark.parametrize(
    ("problem_type", "labels", "kind"),
    [
        (None, 2, "classification"),
        (None, 1, "multi_label"),
        ("regression", 1, "regression"),
        ("regression", 3, "regression"),
        ("multi_label_classification", 3, "multi_label"),
        ("single_label_classification", 3, "classification"),
    ],
)
def test_answers_are_those_of_the_pipeline(
    problem_type: str | None, labels: int, kind: OutputKind
) -> None:
    model = tiny_bert(num_labels=labels, problem_type=problem_type)
    names = [str(model.config.id2label[index]) for index in range(labels)]
    tokenizer = tiny_tokenizer()
    assert output_kind(problem_type, labels) == kind
    texts = ["good film", "a dull plot"]
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    expected: Any = classify(texts, top_k=None)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    logits = model(**batch).logits.detach().numpy()
    answers = TEXT_CLASSIFICATION.answer(logits, names, kind, None)
    for ours, theirs in zip(answers, expected, strict=True):
        found = {item["label"]: item["score"] for item in ours}
        assert found == pytest.approx({x["label"]: x["score"] for x in theirs}, abs=1e-5)
        assert [item["score"] for item in ours] == sorted(found.values(), reverse=True)


def test_refuses_an_unknown_problem_type() -> None:
    with pytest.raises(ValueError, match="unknown problem_type 'ranking'; use one of single_label"):
        output_kind("ranking", 2)


def test_top_k_labels_come_highest_first() -> None:
    scores = np.array([0.1, 0.7, 0.2], np.float32)
    assert [item["label"] for item in ranked_labels(scores, "abc", 2)] == ["b", "c"]
