"""Tags of words: what is read, which token answers for a word, and what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertForTokenClassification, PreTrainedConfig

from hfcompress.data.config import DataConfig
from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.inference import predict
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.run import run
from hfcompress.tasks.token_classification import TOKEN_CLASSIFICATION as TASK
from tests.tasks.tagged import TAGS, save_tagger, tagged_rows, write_rows
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer, trained_tokenizer

CONFIG = DataConfig(path="data")


def load(rows: list[dict[str, Any]], **fields: Any) -> Any:
    data = Dataset.from_list(rows)
    return TASK.load(CONFIG.replace(**fields), need_train=False, splits={"train": data})


def encoded(rows: list[dict[str, Any]], limit: int = 64, **fields: Any) -> tuple[Any, Any]:
    examples = load(rows, **fields)
    return examples, TASK.encode(examples, examples.eval, tiny_tokenizer(), limit)


def tagger() -> Any:
    return tiny_bert(len(TAGS), kind=BertForTokenClassification)


def test_reads_words_and_tags_as_lists_and_as_texts() -> None:
    lists = load([{"words": ["a", "b"], "tags": ["O", "B-X"]}])
    texts = load([{"text": "a b", "label": "O B-X"}])
    for examples in (lists, texts):
        assert examples.labels == ["O", "B-X"]
        assert examples.eval["label"][:] == [[0, 1]]


@pytest.mark.parametrize("missing", [-100, -1])
def test_numbered_tags_take_the_names_of_the_column(missing: int) -> None:
    features = Features(
        {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-X", "I-X"]))}
    )
    rows = Dataset.from_dict(
        {"tokens": [["a", "b"]], "ner_tags": [[1, missing]]}, features=features
    )
    examples = TASK.load(CONFIG, need_train=False, splits={"train": rows})
    assert examples.labels == ["O", "B-X", "I-X"]
    assert examples.eval["label"][:] == [[1, -100]]


def test_a_tag_that_is_mapped_to_null_is_left_out() -> None:
    mapping = {"B-X": None, "I-Y": "I-Z"}
    examples = load([{"tokens": ["a", "b", "c"], "tags": ["O", "B-X", "I-Y"]}], labels=mapping)
    assert examples.labels == ["O", "I-Z"]
    assert examples.eval["label"][:] == [[0, -100, 1]]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "has 2 words in 'tokens' and 1 tags in 'tags'"),
        ({"tokens": ["a"], "tags": [None]}, "has 0 different tags"),
        ({"tokens": [" "], "tags": ["O"]}, "tagging needs two"),
        ({"tokens": 3, "tags": "O"}, "which is neither a list nor a text"),
        ({"sentence": "a", "label_": "O"}, "data.label is not given"),
    ],
)
def test_refuses_rows_that_are_not_tagged_words(row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        load([row])


def test_refuses_a_tag_that_is_not_listed() -> None:
    with pytest.raises(DataError, match="does not list the tag 'B-X'"):
        load([{"tokens": ["a", "b"], "tags": ["O", "B-X"]}], labels=["O", "B-Y"])


def test_the_first_token_of_a_word_answers_for_it() -> None:
    tokenizer = trained_tokenizer("wordpiece")
    words = ["unbelieving", "loversy", "the"]
    examples = load([{"tokens": words, "tags": ["O", "B-X", "O"]}])
    data = TASK.encode(examples, examples.eval, tokenizer, 32)
    row = data.rows[0]
    answering = [token for token, tag in enumerate(row["labels"]) if tag != -100]
    pieces = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert len(pieces) > len(words) + 2
    assert [pieces[token][0] for token in answering] == [word[0] for word in words]
    assert not any(pieces[token].startswith("##") for token in answering)


def test_long_texts_are_read_in_windows_and_each_word_counts_once() -> None:
    rows = [{"tokens": ["film", *["cast"] * 40], "tags": ["B-X", *["O"] * 40]}]
    examples, data = encoded(rows, limit=12)
    assert len(data) > 3
    assert data.counts.sum() == 41
    asked = TASK.references(data, examples.labels)
    assert asked.tags.tolist() == [1 if tag == "B-X" else 0 for tag in rows[0]["tags"]]
    assert sorted(asked.order.tolist()) == list(range(41))
    assert not data.notes
    # A word in two windows is answered for where it has context on both sides.
    for labels in data.rows["labels"][1:-1]:
        assert labels[1] == -100
        assert labels[-2] == -100


def test_words_that_are_cut_off_are_counted() -> None:
    _, data = encoded([{"tokens": ["film"] * 30, "tags": ["O", *["B-X"] * 29]}], 12, overflow="cut")
    assert data.notes == ("20 of 30 words are cut off or have no token",)
    assert len(data) == 1


def test_windows_give_the_order_of_the_words_back() -> None:
    rows = [*tagged_rows(5), {"tokens": ["film", "good"] * 20, "ner_tags": ["O", "B-PER"] * 20}]
    examples, data = encoded(rows, limit=10)
    asked = TASK.references(data, examples.labels)
    ids = [examples.labels.index(tag) for row in rows for tag in row["ner_tags"]]
    assert asked.tags.tolist() == ids
    perfect = np.zeros((len(ids), len(examples.labels)), np.float32)
    perfect[asked.order, ids] = 1
    assert TASK.metric("f1", perfect, asked) == 1.0


def test_batches_and_padding_change_no_answer() -> None:
    _, data = encoded(tagged_rows(9), limit=10)
    model = tagger()
    alone, together = (predict(model, data, size) for size in (1, 7))
    np.testing.assert_allclose(alone, together, atol=1e-5)
    assert len(alone) == data.counts.sum()
    some = np.array([4, 1])
    np.testing.assert_allclose(predict(model, data.select(some), 2), alone[data.places(some)],
                               atol=1e-5)  # fmt: skip


def test_the_comparison_with_dense_is_paired_over_sentences() -> None:
    examples, data = encoded(tagged_rows(30))
    asked = TASK.references(data, examples.labels)
    right = np.eye(len(TAGS), dtype=np.float32)[asked.tags]
    wrong = right.copy()
    wrong[::3] = np.eye(len(TAGS), dtype=np.float32)[0]
    found = TASK.quality("f1", wrong, asked, right)
    assert (found.n, found.mcnemar_p) == (30, None)
    assert found.drop == pytest.approx(1 - found.value)
    low, drop, high = found.drop_low or 0.0, found.drop or 0.0, found.drop_high or 0.0
    assert 0 < low < drop < high
    assert found.paired_p is not None
    assert found.paired_p < 0.01
    assert TASK.quality("f1", right, asked, right).paired_p == 1.0
    types = TASK.by_class(wrong, asked, right, examples.labels)
    assert [(kind["name"], kind["dense"]) for kind in types] == [("LOC", 1.0), ("PER", 1.0)]


def test_metrics_say_what_they_are_not_of() -> None:
    examples, data = encoded([{"tokens": ["film", "is"], "tags": ["NOUN", "VERB"]}])
    asked = TASK.references(data, examples.labels)
    outputs = np.eye(2, dtype=np.float32)
    assert TASK.metric("accuracy", outputs, asked) == 1.0
    with pytest.raises(DataError, match="are not of entities"):
        TASK.metric("f1", outputs, asked)
    with pytest.raises(DataError, match="got 3 predictions for 2 words"):
        TASK.metric("accuracy", np.zeros((3, 2), np.float32), asked)
    with pytest.raises(ModelError, match="has 1 tag"):
        TASK.check_head(PreTrainedConfig.from_dict({"num_labels": 1}), "m")


def recipe(folder: Path, **changes: Any) -> Any:
    save_tagger(folder / "model")
    (folder / "data").mkdir()
    write_rows(folder / "data" / "train.jsonl", tagged_rows(24))
    write_rows(folder / "data" / "dev.jsonl", tagged_rows(12, seed=1))
    data = {
        "name": "tags", "task": "token-classification", "model": str(folder / "model"),
        "data": str(folder / "data"), "steps": [{"prune": {"sparsity": 0.8}}],
    }  # fmt: skip
    return parse_recipe({**data, **changes})


def test_a_recipe_measures_entities(tmp_path: Path) -> None:
    torch.manual_seed(0)
    steps = [{"finetune": {"max_steps": 2}}, {"prune": {"sparsity": 0.8, "method": "wanda"}},
             {"distill": {"max_steps": 2}}]  # fmt: skip
    (row,) = run(recipe(tmp_path, steps=steps), draw=False).rows
    assert (row["metric"], row["n"]) == ("f1", 12)
    assert {kind["name"] for kind in row["classes"]} == {"LOC", "PER"}
    assert np.shape(row["steps"][-1]["teacher_logits"]) == (4, len(TAGS))
    assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1


def test_a_recipe_refuses_a_metric_of_another_task(tmp_path: Path) -> None:
    asked = recipe(tmp_path, measure={"metric": "matthews_correlation"})
    with pytest.raises(ConfigError, match="is not one of token-classification"):
        run(asked, draw=False)


def test_groups_are_on_one_side() -> None:
    rows = [{**row, "book": str(place % 5)} for place, row in enumerate(tagged_rows(20))]
    data = Dataset.from_list(rows)
    examples = TASK.load(CONFIG.replace(group="book"), need_train=True, splits={"train": data})
    assert examples.train is not None
    sides = [set(side["book"][:]) for side in (examples.train, examples.eval)]
    assert not sides[0] & sides[1]
    assert set.union(*sides) == set("01234")
