"""Sets of labels and numbers in the place of one class: read, trained, measured, quantized."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import AutoModelForSequenceClassification, pipeline

import hfcompress
from hfcompress.data.config import DataConfig
from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.run import run
from hfcompress.tasks.text_classification import TEXT_CLASSIFICATION as TASK
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import BAD, FILLER, GOOD, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("shared_exports")

CONFIG = DataConfig(path="data")


def load(rows: list[dict[str, Any]], **fields: Any) -> Any:
    data = Dataset.from_list(rows)
    return TASK.load(CONFIG.replace(**fields), need_train=False, splits={"train": data})


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": "a film", "label": label} for label in labels]


@pytest.mark.parametrize(
    ("labels", "names", "marks"),
    [
        ([["a", "b"], ["b"], []], ["a", "b"], [[1, 1], [0, 1], [0, 0]]),
        ([[1, 0, 1], [0, 0, 0]], ["0", "1", "2"], [[1, 0, 1], [0, 0, 0]]),
        ([[0, 2], [1, 2]], ["0", "1", "2"], [[1, 0, 1], [0, 1, 1]]),
    ],
)
def test_reads_lists_and_vectors(labels: Any, names: list[str], marks: Any) -> None:
    found = load(labelled(*labels))
    assert (found.kind, found.labels) == ("multi_label", names)
    assert found.eval["label"][:] == marks


def test_reads_several_columns_and_the_names_of_class_labels() -> None:
    rows = [{"text": "x", "toxic": "1", "rude": "0"}, {"text": "y", "toxic": "0", "rude": "1"}]
    found = load(rows, label=["toxic", "rude"])
    assert (found.kind, found.labels) == ("multi_label", ["toxic", "rude"])
    assert found.eval["label"][:] == [[1, 0], [0, 1]]
    features = Features(
        {"text": Value("string"), "labels": List(ClassLabel(names=["joy", "fear"]))}
    )
    data = Dataset.from_dict({"text": ["x", "y"], "labels": [[1], [0, 1]]}, features=features)
    named = TASK.load(CONFIG, need_train=False, splits={"train": data})
    assert (named.labels, named.eval["label"][:]) == (["joy", "fear"], [[0, 1], [1, 1]])


def test_vectors_take_the_names_that_are_listed() -> None:
    assert load(labelled([1, 0], [0, 1]), labels=["x", "y"]).labels == ["x", "y"]
    with pytest.raises(DataError, match="lists 3 labels and 'label' has 2 numbers in a row"):
        load(labelled([1, 0], [0, 1]), labels=["x", "y", "z"])
    assert load(labelled("a|b", "b"), problem="sets").eval["label"][:] == [[1, 1], [0, 1]]


def test_fractions_are_numbers_and_whole_numbers_are_classes() -> None:
    found = load(labelled(0.5, 1.0, None))
    assert (found.kind, found.labels, len(found.eval)) == ("regression", ["label"], 2)
    assert found.notes == ("the labels in label are numbers: a regression",)
    assert found.dropped == {"eval: no label": 1}
    assert load(labelled(0, 1, 2)).kind == "classification"
    assert load(labelled(0, 1, 2), problem="numbers").eval["label"][:] == [[0], [1], [2]]
    several = load([{"text": "x", "a": 0.5, "b": 3.0}, {"text": "y", "a": 1.0, "b": 4.0}],
                   label=["a", "b"])  # fmt: skip
    assert (several.kind, several.eval["label"][:]) == ("regression", [[0.5, 3.0], [1.0, 4.0]])


def test_pairs_and_scores_are_found_by_their_usual_names() -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "score": 2}, {"sentence1": "c", "sentence2": "d",
            "score": 5}]  # fmt: skip
    found = load(rows)
    assert (found.kind, found.columns) == ("regression", ("sentence1", "sentence2"))


@pytest.mark.parametrize(
    ("labels", "fields", "says"),
    [
        (
            (0.5, 7.0),
            {"range": [0, 5]},
            r"row 1 of the eval side has 7 in label, outside of data.r",
        ),
        ((0.5, "x"), {"problem": "numbers"}, "which is not a number"),
        ((["a"], ["a"]), {}, "has 1 label in all"),
        ((["a", "b"], ["c"]), {"labels": ["a", "b"]}, "does not list 'c'"),
        (([0.5, 1], [1]), {}, "has 2 numbers and another row 1"),
    ],
)
def test_refuses_labels_that_do_not_fit(labels: Any, fields: Any, says: str) -> None:
    rows = [{"text": "x", "label": label} for label in labels]
    if "x" in labels:
        rows = [{"text": "x", "label": str(label)} for label in labels]
    with pytest.raises(DataError, match=says):
        load(rows, **fields)


def test_a_range_is_two_numbers() -> None:
    with pytest.raises(ConfigError, match="range is two numbers"):
        DataConfig(path="x", range=[1])  # type: ignore[arg-type]


# --- through the verbs -------------------------------------------------------------------------


def text_rows(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    generator, rows = random.Random(seed), []
    for _ in range(count):
        good, bad = generator.randint(0, 2), generator.randint(0, 2)
        words = generator.choices(FILLER, k=3) + generator.choices(GOOD, k=good)
        words += generator.choices(BAD, k=bad)
        generator.shuffle(words)
        sets = [name for name, number in (("good", good), ("bad", bad)) if number]
        rows.append(
            {"text": " ".join(words), "label": sets if kind == "sets" else (good - bad) / 2}
        )
    return rows


def recipe(folder: Path, kind: str, steps: Any, **changes: Any) -> Any:
    (folder / "data").mkdir(parents=True)
    tiny_bert().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name, count, seed in (("train", 48, 0), ("dev", 24, 1)):
        lines = [json.dumps(row) for row in text_rows(kind, count, seed)]
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(lines))
    return parse_recipe(
        {"name": "kinds", "model": str(folder / "model"), "data": str(folder / "data"),
         "steps": steps, "save_models": True, **changes}
    )  # fmt: skip


STEPS = [
    {"finetune": {"epochs": 4, "learning_rate": 1e-2}},
    {"prune": {"sparsity": 0.3}},
    {"distill": {"max_steps": 2}},
    {"quantize": {"backend": "onnxruntime"}},
]
IN_TORCH: list[dict[str, Any]] = [*STEPS[:-1], {"quantize": {"backend": "torch"}}]


@pytest.mark.parametrize(
    ("kind", "steps", "metric", "better"),
    [("sets", STEPS, "f1_micro", 0.6), ("numbers", IN_TORCH, "pearson", 0.3)],
)
def test_a_recipe_of_another_kind(
    kind: str, steps: list[dict[str, Any]], metric: str, better: float, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    made = run(recipe(tmp_path, kind, steps), tmp_path / "out", draw=False)
    (row,) = made.rows
    assert (row["metric"], row["n"], row["mcnemar_p"]) == (metric, 24, None)
    assert row["value"] > better
    assert row["low"] <= row["value"] <= row["high"]
    assert row["drop_low"] <= row["drop"] <= row["drop_high"]
    assert [one["name"] for one in row["classes"]] == (["bad", "good"] if kind == "sets" else [])
    (folder,) = (tmp_path / "out").glob("**/hfcompress.json")
    answers = hfcompress.load(folder.parent)(["good film", "dull plot"], top_k=None)
    assert all(len(answer) == (2 if kind == "sets" else 1) for answer in answers)


def test_a_saved_model_answers_as_the_pipeline(tmp_path: Path) -> None:
    made = run(recipe(tmp_path, "sets", STEPS[:1]), tmp_path / "out", draw=False)
    assert len(made.rows) == 1
    (config,) = (tmp_path / "out").glob("models/*/config.json")
    assert json.loads(config.read_text())["problem_type"] == "multi_label_classification"
    model = AutoModelForSequenceClassification.from_pretrained(config.parent)
    tokenizer = tiny_tokenizer()
    classify: Any = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    scores = {item["label"]: item["score"] for item in classify("good film")[0]}
    assert scores["good"] > scores["bad"]


def test_a_list_of_labels_for_a_single_label_model_is_refused(tmp_path: Path) -> None:
    asked = recipe(tmp_path, "sets", [{"prune": {"sparsity": 0.5}}])
    config = tmp_path / "model" / "config.json"
    names = {"id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **names}))
    with pytest.raises(ModelError, match=r"gives one label for each example .*; the data ask for"):
        run(asked, draw=False)


def test_metrics_of_another_kind_are_refused(tmp_path: Path) -> None:
    asked = recipe(tmp_path, "numbers", STEPS[:1], measure={"metric": "f1"})
    with pytest.raises(ConfigError, match="use one of pearson, spearman, rmse, r2"):
        run(asked, draw=False)


def test_references_of_numbers_keep_their_fractions() -> None:
    examples = load(labelled(0.25, 3.5))
    data = TASK.encode(examples, examples.eval, tiny_tokenizer(), 16)
    asked = TASK.references(data)
    assert asked.tolist() == [[0.25], [3.5]]
    assert TASK.metric("rmse", np.array([[0.25], [2.5]]), asked) == pytest.approx(0.5**0.5)
    with pytest.raises(DataError, match="got outputs of shape"):
        TASK.metric("rmse", np.zeros((2, 2)), asked)
