"""Data sets in every form people have them in, and one sentence where they do not fit."""

from __future__ import annotations

import bz2
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from hfcompress.data.config import DataConfig
from hfcompress.data.load import (
    Examples,
    align_examples,
    fingerprint,
    load_examples,
    load_texts,
)
from hfcompress.errors import ConfigError, DataError, ModelError, SourceError
from hfcompress.models.loading import LoadedModel
from tests.tiny_models import tiny_bert

TEXT = "sentence"


def load(path: Path | str, need_train: bool = False, **fields: Any) -> Examples:
    return load_examples(DataConfig(path=str(path), **fields), "text", need_train)


ROWS = [{"sentence": f"film {index}", "label": index % 2} for index in range(20)]


def as_csv(path: Path) -> Path:
    lines = ["sentence,label", *(f'"{row["sentence"]}, yes",{row["label"]}' for row in ROWS)]
    path.write_text("\n".join(lines))
    return path


def as_json_lines(path: Path) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


def as_parquet(path: Path) -> Path:
    Dataset.from_list(ROWS).to_parquet(path)
    return path


def as_bz2(path: Path) -> Path:
    path.write_bytes(bz2.compress(as_csv(path.with_name("plain.csv")).read_bytes()))
    return path


def as_gz_tsv(path: Path) -> Path:
    lines = ["sentence\tlabel", *(f'{row["sentence"]} "\t{row["label"]}' for row in ROWS)]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (as_csv, "data.csv"),
        (as_json_lines, "data.jsonl"),
        (as_json_lines, "data.json"),
        (as_parquet, "data.parquet"),
        (as_bz2, "data.csv.bz2"),
        (as_gz_tsv, "data.tsv.gz"),
    ],
)
def test_every_format(write: Callable[[Path], Path], name: str, tmp_path: Path) -> None:
    found = load(write(tmp_path / name))
    assert len(found.eval) == 20
    assert found.eval["label"] == [row["label"] for row in ROWS]
    assert found.eval[3]["sentence"].startswith("film 3")
    assert found.columns == ("sentence",)
    assert found.labels == ["0", "1"]


def test_quotes_in_a_tsv_are_text(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text('sentence\tlabel\n"so called" film\t1\na "film\t0\n')
    assert load(path).eval["sentence"][:] == ['"so called" film', 'a "film']


def test_a_file_without_header(write_data: Callable[..., Path]) -> None:
    found = load(write_data("dev.tsv", header=False), text="sentence")
    assert len(found.eval) == 60
    assert found.notes == ("dev.tsv has no header line; its columns are read as sentence, label",)


def test_a_folder_of_splits(write_data: Callable[..., Path], tmp_path: Path) -> None:
    write_data("set/train.tsv", rows=30)
    write_data("set/dev.tsv", rows=10)
    found = load(tmp_path / "set", need_train=True)
    assert found.train is not None
    assert (len(found.train), len(found.eval)) == (30, 10)
    with pytest.raises(DataError, match=r"data\.eval: there is no split 'tset'"):
        load(tmp_path / "set", eval="tset")
    assert len(load(tmp_path / "set", eval="train").eval) == 30


def test_saved_data_sets(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]}, features=features)
    rows.save_to_disk(str(tmp_path / "one"))
    DatasetDict(train=rows, test=rows.select([0, 1])).save_to_disk(str(tmp_path / "many"))
    assert load(tmp_path / "one").labels == ["no", "yes"]
    assert len(load(tmp_path / "many", eval="test").eval) == 2
    swapped = load(tmp_path / "one", labels=["yes", "no"])
    assert swapped.eval["label"] == [1, 0, 0]


def test_labels_in_the_order_asked_and_others_dropped(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,kind\na,bad\nb,good\nc,plot\nd,good\n,bad\n")
    found = load(path, label="kind", labels=["good", "bad"])
    assert found.labels == ["good", "bad"]
    assert found.eval["label"] == [1, 0, 0]
    assert found.dropped == {"eval: other label": 1, "eval: empty text": 1}


def test_minus_one_is_a_class_where_there_are_others(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\nc,-1\nd,\n")
    (tmp_path / "dev.csv").write_text("text,label\na,-1\nb,-1\n")
    found = load(tmp_path, eval="train")
    assert found.labels == ["-1", "0", "1"]
    assert found.eval["label"][:] == [1, 2, 0]
    assert found.dropped == {"eval: no label": 1}
    with pytest.raises(DataError, match=r"the eval side of .* has no usable row"):
        load(tmp_path)


def test_a_class_of_one_side_is_a_class(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\nc,2\n")
    (tmp_path / "dev.csv").write_text("text,label\na,0\nb,2\n")
    for fields in ({}, {"labels": [0, 1, 2]}, {"labels": ["0", "1", "2"]}):
        found = load(tmp_path, need_train=True, **fields)
        assert found.train is not None
        assert found.labels == ["0", "1", "2"]
        assert (found.train["label"][:], found.eval["label"][:]) == ([0, 1, 2], [0, 2])
        assert found.notes == ("the eval side has no row with the label 1",)
        assert not found.dropped


def test_splits_that_order_their_labels_in_two_ways(tmp_path: Path) -> None:
    sides = {}
    for side, names in (("train", ["cat", "dog"]), ("validation", ["Dog", "cat", "cow"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        rows = {"text": ["a", "b"], "label": [0, 1]}
        sides[side] = Dataset.from_dict(rows, features=features)
    DatasetDict(sides).save_to_disk(str(tmp_path / "set"))
    found = load(tmp_path / "set", need_train=True)
    assert found.train is not None
    assert found.labels == ["Dog", "cat", "cow"]
    assert (found.train["label"][:], found.eval["label"][:]) == ([1, 0], [0, 1])


@pytest.mark.parametrize(
    ("labels", "names", "numbers", "dropped"),
    [
        ({"pos": "POSITIVE"}, ["POSITIVE", "neg", "odd"], [0, 1, 2, 0], {}),
        ({"pos": "good", "neg": "bad", "odd": None}, ["bad", "good"], [1, 0, 1],
         {"eval: no label": 1}),
        ({"pos": "yes", "odd": "yes"}, ["neg", "yes"], [1, 0, 1, 1], {}),
        (["neg", "pos"], ["neg", "pos"], [1, 0, 1], {"eval: other label": 1}),
    ],
)  # fmt: skip
def test_labels_may_be_mapped(
    labels: Any, names: list[str], numbers: list[int], dropped: dict[str, int], tmp_path: Path
) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,pos\nb,neg\nc,odd\nd,Pos \n")
    found = load(path, labels=labels)
    assert found.labels == names
    assert found.eval["label"][:] == numbers
    assert found.dropped == dropped


def test_json_values_of_several_types(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": 12, "label": 0}\n{"text": 7, "label": "1"}')
    found = load(path)
    assert found.labels == ["0", "1"]
    assert found.eval["text"][:] == ["12", "7"]


def test_spellings_of_one_label_are_one_class(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,New York\nb,new_york\nc,A\nd,a\ne,C#\nf,C++\n")
    found = load(path)
    assert found.labels == ["A", "C#", "C++", "New York", "a"]
    assert found.eval["label"][:] == [3, 3, 0, 4, 1, 2]
    assert found.notes == ("labels 'New York' and 'new_york' are one class",)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", "a|b"], "'a|b' in column 'label' is several labels"),
        (["[1, 0]", "[0, 1]"], "is several labels"),
        (["1;0", "0;1"], "is several labels"),
        (["art|music", "sport|news", "art"], "'art|music' in column 'label' is several labels"),
    ],
)
def test_several_labels_of_a_row_are_refused(
    labels: list[Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"text": "x", "label": label}) for label in labels))
    with pytest.raises(DataError, match=re.escape(message)):
        load(path)


def test_a_lone_split_keeps_every_class_on_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    lines = [f"text {i},{kind}" for kind, rows in (("a", 40), ("b", 40), ("rare", 2), ("one", 1))
             for i in range(rows)]  # fmt: skip
    path.write_text("\n".join(["text,label", *lines]))
    for seed in range(5):
        found = load(path, need_train=True, seed=seed)
        assert found.train is not None
        train, measured = found.train["label"][:], found.eval["label"][:]
        assert len(train) + len(measured) == 83
        rare, one = found.labels.index("rare"), found.labels.index("one")
        assert train.count(rare) == measured.count(rare) == 1
        side = "train" if one in measured else "eval"
        assert found.notes == (f"the {side} side has no row with the label one",)


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    lines = [f"film {i},{i % 2},movie {i // 6}" for i in range(120)]
    path.write_text("\n".join(["text,label,movie", *lines]))
    found = load(path, need_train=True, group="movie", eval_fraction=0.25)
    assert found.train is not None
    train, measured = set(found.train["movie"]), set(found.eval["movie"])
    assert not train & measured
    assert len(train | measured) == 20
    assert 30 <= len(found.eval) < 36
    other = load(path, need_train=True, group="movie", eval_fraction=0.25, seed=1)
    assert set(other.eval["movie"]) != measured


def test_a_lone_split_is_divided_or_measured_whole(write_data: Callable[..., Path]) -> None:
    path = write_data(rows=50)
    assert len(load(path).eval) == 50
    divided = load(path, need_train=True, eval_fraction=0.3)
    assert divided.train is not None
    assert (len(divided.train), len(divided.eval)) == (35, 15)


def test_limits_choose_by_seed(write_data: Callable[..., Path]) -> None:
    path = write_data(rows=50)
    some = load(path, need_train=True, max_train=10, max_eval=8)
    assert some.train is not None
    assert (len(some.train), len(some.eval)) == (10, 8)
    again = load(path, need_train=True, max_train=10, max_eval=8)
    assert fingerprint(some.train, some.columns) == fingerprint(again.train, again.columns)


def test_pairs_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("first,second,label\na,b,0\nc,d,1\n")
    assert load(path, text=["first", "second"]).columns == ("first", "second")


def test_fingerprint_is_content(write_data: Callable[..., Path], tmp_path: Path) -> None:
    first = load(write_data("a.tsv"))
    same = load(write_data("b.tsv"))
    other = load(write_data("c.tsv", seed=1))
    digits = [fingerprint(found.eval, found.columns) for found in (first, same, other)]
    assert digits[0] == digits[1] != digits[2]


def test_image_folder(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / "train" / kind / f"{index}.png")
    found = load_examples(DataConfig(path=str(tmp_path)), "image", need_train=False)
    assert found.columns == ("image",)
    assert found.labels == ["cat", "dog"]
    assert len(fingerprint(found.eval, found.columns)) == 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "lable"}, "data.label: there is no column 'lable'; did you mean 'label'?"),
        ({"text": "sentnce"}, "data.text: there is no column 'sentnce'; did you mean 'sentence'?"),
        ({"group": "movie"}, "data.group: there is no column 'movie'"),
        ({"labels": [0, 7]}, "data.labels: no row has the label '7'"),
        ({"eval_fraction": 0.001, "max_train": 1}, "has one class only"),
    ],
)
def test_what_does_not_fit(
    fields: dict[str, Any], message: str, write_data: Callable[..., Path]
) -> None:
    with pytest.raises(DataError) as caught:
        load(write_data(), need_train=True, **fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,1\nb,1\n", "has one class only (1)"),
        ("text,label\n", "has no usable row"),
        ("text,label\na,0.25\nb,nan\nc,inf\n", "row 2 of the eval side has 'inf'"),
        ("words,label\na,0\nb,1\n", "none of text, sentence"),
    ],
)
def test_files_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        load(path)
    assert message in str(caught.value)


def test_one_group_leaves_a_side_empty(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label,movie\na,0,x\nb,1,x\nc,1,x\n")
    with pytest.raises(DataError, match=r"'movie' \(1 groups\) leaves the train side empty"):
        load(path, need_train=True, group="movie")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no data file"):
        load(tmp_path)
    as_csv(tmp_path / "a.csv")
    as_json_lines(tmp_path / "b.jsonl")
    with pytest.raises(SourceError, match="mixes csv and json"):
        load(tmp_path)


def test_a_broken_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"text": "a", "label"')
    with pytest.raises(DataError, match="cannot be read as json") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_hub_data_set_without_network() -> None:
    with pytest.raises(SourceError, match="the hub cannot be reached"):
        load("some-org/some-data")


@pytest.mark.parametrize(
    "fields", [{"text": "a", "image": "b"}, {"labels": ["x"]}, {"eval_fraction": 1.0}]
)
def test_configs_that_contradict_themselves(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DataConfig(path="x", **fields)


def test_texts_without_labels(tmp_path: Path) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("one film\n\n  \ntwo films\n")
    assert load_texts(DataConfig(path=str(lines))) == ["one film", "two films"]
    table = tmp_path / "train.csv"
    table.write_text("review,stars\ngood film,5\nbad film,1\n")
    config = DataConfig(path=str(table), text="review")
    assert load_texts(config) == ["good film", "bad film"]
    assert len(load_texts(config.replace(max_train=1))) == 1
    (tmp_path / "dev.csv").write_text("review,stars\nother film,5\n")
    folder = config.replace(path=str(tmp_path))
    assert load_texts(folder) == ["good film", "bad film"]
    assert load_texts(folder.replace(train="validation")) == ["other film"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "reviw"}, "no column 'reviw'; did you mean 'review'"),
        ({"train": "trian"}, "no split 'trian'; did you mean 'train'"),
        ({"text": ("review", "stars")}, "come from one column"),
        ({"text": "empty"}, "has no text in column 'empty'"),
    ],
)
def test_mistakes_in_texts_without_labels(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    for name in ("train.csv", "dev.csv"):
        (tmp_path / name).write_text("review,stars,empty\ngood film,5,\n")
    config = DataConfig(path=str(tmp_path), text="review").replace(**changes)
    with pytest.raises(DataError, match=message):
        load_texts(config)


def with_classes(names: list[str], new_head: bool = False) -> LoadedModel:
    model = tiny_bert()
    model.config.id2label = dict(enumerate(names))
    return LoadedModel(model, None, new_head, "fingerprint")


def test_examples_take_the_class_numbers_of_a_model(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,neg\nb,pos\nc,neg\nd,pos\n")
    examples = load(path, need_train=True, eval_fraction=0.5)
    found = align_examples(examples, with_classes(["POS", "odd", "NEG"]), "m")
    assert found.labels == ["pos", "odd", "neg"]
    assert found.train is not None
    for side in (found.train, found.eval):
        assert [{"a": 2, "b": 0, "c": 2, "d": 0}[text] for text in side["text"]] == side["label"][:]
    assert align_examples(examples, with_classes(["x", "y"], new_head=True), "m") is examples
    with pytest.raises(ModelError, match=r"the data have 2 \(neg, pos\) and the model 2 \(x, y\)"):
        align_examples(examples, with_classes(["x", "y"]), "m")
