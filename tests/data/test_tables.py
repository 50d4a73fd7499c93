"""Text files of rows as people save them: their encoding, delimiter, header line and words."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hfcompress.data.config import DataConfig
from hfcompress.data.encode import encode
from hfcompress.data.load import Examples, load_examples, load_texts
from hfcompress.data.tables import find_encoding
from hfcompress.errors import DataError
from hfcompress.models.image_models import plain_processor


def load(path: Path, need_train: bool = False, **fields: Any) -> Examples:
    return load_examples(DataConfig(path=str(path), **fields), "text", need_train)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


CAFE = "text,label\n" + "".join(f"café número {i} à l'été,{i % 2}\n" for i in range(20))


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("latin-1", "cp1252"),
    ],
)
@pytest.mark.parametrize("name", ["data.csv", "data.csv.gz"])
def test_encodings_are_found(encoding: str, found: str, name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, CAFE, encoding)
    assert find_encoding(path)[0] == found
    examples = load(path)
    assert examples.eval["text"][3] == "café número 3 à l'été"
    assert examples.columns == ("text",)
    assert bool(examples.notes) == (found in ("cp1252", "utf-16-le", "utf-16-be"))


def test_lines_of_text_and_json_in_other_encodings(tmp_path: Path) -> None:
    lines = write(tmp_path / "texts.txt", "café\nthé\n", "latin-1")
    assert load_texts(DataConfig(path=str(lines))) == ["café", "thé"]
    rows = write(tmp_path / "data.jsonl", '{"text": "café", "label": 1}\n{"text": "a", "label": 0}',
                 "utf-8-sig")  # fmt: skip
    assert load(rows).eval["text"][0] == "café"


@pytest.mark.parametrize("encoding", ["cp1251", "shift_jis", "gbk"])
def test_an_unknown_encoding_is_refused(encoding: str, tmp_path: Path) -> None:
    words = {
        "cp1251": "хороший фильм",
        "shift_jis": "とても良い映画でした",
        "gbk": "这部电影非常好看",
    }
    path = write(tmp_path / "data.csv", f"text,label\n{words[encoding]},1\n" * 9, encoding)
    with pytest.raises(DataError, match=r"data\.csv is not UTF-8 text .*; save it as UTF-8"):
        load(path)


def test_folders_may_mix_encodings(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", CAFE)
    write(tmp_path / "dev.csv", CAFE, "latin-1")
    found = load(tmp_path, need_train=True)
    assert found.train is not None
    assert found.train["text"][:] == found.eval["text"][:]


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("a.csv", "text;label\nfine, so so;1\nbad;0\n", "a.csv separates its fields by semicolons"),
        ("a.csv", 'text;label\n"a; b; c";1\nbad;0\n', "a.csv separates its fields by semicolons"),
        ("a.csv", "text\tlabel\nfine, so so\t1\nbad\t0\n", "a.csv separates its fields by tabs"),
        ("a.csv", "text|label\nfine|1\nbad|0\n", "a.csv separates its fields by bars"),
        ("a.tsv", "text,label\nfine,1\nbad,0\n", "a.tsv separates its fields by commas"),
        ("a.csv", 'text,label\n"fine; or not; or",1\nbad;,0\n', None),
    ],
)
def test_delimiters_are_found(name: str, content: str, note: str | None, tmp_path: Path) -> None:
    found = load(write(tmp_path / name, content))
    assert found.notes == (() if note is None else (note,))
    assert found.eval["label"][:] == [1, 0]
    assert len(found.eval["text"][0]) >= 4


@pytest.mark.parametrize("header", ["Text,Label", "SENTENCE,CLASS", " text , label "])
def test_usual_columns_in_any_case(header: str, tmp_path: Path) -> None:
    found = load(write(tmp_path / "data.csv", f"{header}\na,0\nb,1\n"))
    assert (len(found.eval), found.notes) == (2, ())


def test_words_for_nothing_are_words(tmp_path: Path) -> None:
    rows = ["NA,None", "null,good", "nan,None", "a film,good", ",good", "the plot,"]
    found = load(write(tmp_path / "data.csv", "\n".join(["text,label", *rows])))
    assert found.labels == ["None", "good"]
    assert found.eval["text"][:] == ["NA", "null", "nan", "a film"]
    assert found.dropped == {"eval: no label": 1, "eval: empty text": 1}


def test_numbers_of_labels_may_be_written_as_fractions(tmp_path: Path) -> None:
    found = load(write(tmp_path / "data.csv", "text,label\na,1.0\nb,0.0\nc,1\nd,\n"))
    assert found.labels == ["0", "1"]
    assert found.eval["label"][:] == [1, 0, 1]
    assert found.dropped == {"eval: no label": 1}


def test_texts_of_digits_stay_texts(tmp_path: Path) -> None:
    found = load(write(tmp_path / "data.csv", "text,label\n007,0\n1e3,1\n"))
    assert found.eval["text"][:] == ["007", "1e3"]


MANY = "".join(f"film {i} is so so,{('bad', 'good')[i % 2]}\n" for i in range(9))


@pytest.mark.parametrize("header", ["my_text,my_target", "Review Body,Stars", "comment,toxicity"])
def test_an_unknown_header_is_a_header(header: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", f"{header}\n{MANY}")
    with pytest.raises(DataError, match=re.escape(f"the data has: {header.replace(',', ', ')}")):
        load(path)
    text, label = header.split(",")
    assert len(load(path, text=text, label=label).eval) == 9


def test_numbers_below_an_unknown_word_make_it_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", "what people said so far,target\na,0\nb,1\nc,1\n")
    with pytest.raises(DataError, match="is not given and none of text"):
        load(path)


@pytest.mark.parametrize(
    "rows",
    [
        "a good film,good\n" + MANY,
        "a film that nobody saw, ever so far.,unseen\n".replace(", ever", " ever") + MANY,
        "so it goes,1\nbad,0\n",
    ],
)
def test_a_first_row_is_no_header(rows: str, tmp_path: Path) -> None:
    found = load(write(tmp_path / "data.csv", rows))
    assert len(found.eval) == rows.count("\n")
    assert found.notes[0] == ("data.csv has no header line; its columns are read as text, label")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,0\nb, so so,1\n", "row 3 of data.csv has 3 fields and the header line 2"),
        ("text,label,label\na,0,1\n", "data.csv has two columns named 'label'; rename one"),
        ("text,label\n" + "a,0\nb,1\n" * 400 + "a,b,c,1\n", "cannot be read as csv"),
        ("sep=;\ntext;label\na;0\nb;1\n", "data.csv begins with a line 'sep='; remove that line"),
        ("question,sentence,label\na,b,0\nc,d,1\n", "write data.text: sentence to read one"),
    ],
)
def test_tables_that_do_not_fit(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(write(tmp_path / "data.csv", content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def image_table(folder: Path, rows: list[str], name: str = "images.csv") -> Path:
    for place in range(6):
        pixels = np.full((8, 8, 3), 200 * (place % 2), np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    return write(folder / name, "\n".join(rows))


@pytest.mark.parametrize("header", ["image,label", "file_name,label", "label,path", ""])
def test_a_table_of_image_paths(header: str, tmp_path: Path) -> None:
    pairs = [(f"{i}.png", ("dark", "bright")[i % 2]) for i in range(6)]
    last = header.startswith("label")
    rows = [",".join(pair[::-1] if last else pair) for pair in pairs]
    path = image_table(tmp_path, [*filter(None, [header]), *rows])
    found = load_examples(DataConfig(path=str(path)), "image", need_train=False)
    assert found.labels == ["bright", "dark"]
    batch = next(encode(found, found.eval, plain_processor(8, 3), None).batches(6))[1]
    bright = batch["pixel_values"].mean((1, 2, 3)) > 0
    assert bright.tolist() == [label == 0 for label in batch["labels"].tolist()]


def test_image_paths_that_do_not_exist_are_named(tmp_path: Path) -> None:
    rows = ["image,label", "0.png,a", "no.png,b", "nowhere/1.png,a"]
    found = load_examples(
        DataConfig(path=str(image_table(tmp_path, rows))), "image", need_train=False
    )
    with pytest.raises(
        DataError, match=r"2 images .*no\.png, row 1 \(there is no image file\).*nowhere/1\.png"
    ):
        encode(found, found.eval, plain_processor(8, 3), None)
