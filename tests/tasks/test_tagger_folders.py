"""Quantized taggers: folders of every engine answer as transformers' pipeline does."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForTokenClassification, pipeline

import hfcompress
from hfcompress.errors import ConfigError, DataError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from tests.tasks.tagged import TAGS, save_tagger, tagged_rows
from tests.tiny_tokenizers import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("shared_exports")
TEXTS = [" ".join(row["tokens"]) for row in tagged_rows(10)]
MODES = [("onnxruntime", "none"), ("openvino", "none"), ("torch", "dynamic"),
         ("onnxruntime", "dynamic"), ("openvino", "static"), ("torchao", "dynamic")]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_tagger(tmp_path_factory.mktemp("tagger") / "model")
    return AutoModelForTokenClassification.from_pretrained(folder).eval()


def saved(model: Any, folder: Path, backend: str, mode: str) -> Path:
    pytest.importorskip(backend)
    config = QuantizationConfig.from_dict({"backend": backend, "mode": mode})
    batch = dict(tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt"))
    return quantize(model, config, [batch]).save(folder, tiny_tokenizer())


@pytest.mark.parametrize(("backend", "mode"), MODES)
def test_folders_answer_as_the_pipeline(
    model: Any, tmp_path: Path, backend: str, mode: str
) -> None:
    tag: Any = hfcompress.load(saved(model, tmp_path / "folder", backend, mode))
    asked: Any = pipeline("token-classification", model=model, tokenizer=tiny_tokenizer())
    ours, theirs = (
        [entry for found in answer(TEXTS, ignore_labels=[]) for entry in found]
        for answer in (tag, asked)
    )
    for field in ("word", "start", "end", "index"):
        assert [entry[field] for entry in ours] == [entry[field] for entry in theirs]
    scores, exact = (np.array([entry["score"] for entry in part]) for part in (ours, theirs))
    same = [a["entity"] == b["entity"] for a, b in zip(ours, theirs, strict=True)]
    if mode == "none":
        assert all(same)
        np.testing.assert_allclose(scores, exact, atol=1e-4)
        assert [len(found) for found in tag(TEXTS)] == [len(found) for found in asked(TEXTS)]
    else:  # the weights are random, and no class is far ahead of the others
        assert np.mean(same) > 0.8
        assert np.median(np.abs(scores - exact)) < 0.1
    if mode == "none":
        assert tag(TEXTS[0], aggregation_strategy="simple") == [
            {**entry, "score": pytest.approx(entry["score"], abs=1e-4)}
            for entry in asked(TEXTS[0], aggregation_strategy="simple")
        ]


def test_one_text_alone_is_one_of_many(model: Any, tmp_path: Path) -> None:
    tag: Any = hfcompress.load(saved(model, tmp_path / "folder", "onnxruntime", "none"))
    for text, found in zip(TEXTS, tag(TEXTS, batch_size=4), strict=True):
        alone = tag(text)
        assert [entry["entity"] for entry in alone] == [entry["entity"] for entry in found]
        np.testing.assert_allclose(
            [entry["score"] for entry in alone], [entry["score"] for entry in found], atol=1e-4
        )
    with pytest.raises(DataError, match="example 1 is 3; give a text"):
        tag(["film", 3])
    with pytest.raises(DataError, match="got no text"):
        tag([])
    with pytest.raises(ConfigError, match="refuses the options"):
        tag("film", aggregation_strategy="sometimes")


def test_the_script_prints_the_tag_of_each_word(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(model, tmp_path / "folder", "onnxruntime", "none")
    monkeypatch.setattr(sys, "argv", ["example.py", *TEXTS])
    runpy.run_path(str(folder / "example.py"), run_name="__main__")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[2] for line in printed] == " ".join(TEXTS).split()
    asked: Any = pipeline("token-classification", model=model, tokenizer=tiny_tokenizer())
    expected = [entry["entity"] for text in asked(TEXTS, ignore_labels=[]) for entry in text]
    assert [line[0] for line in printed] == expected


def test_the_distance_leaves_padding_out(model: Any) -> None:
    pytest.importorskip("onnxruntime")
    batch = tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    longer = tiny_tokenizer()(TEXTS, padding="max_length", max_length=60, return_tensors="pt")
    config = QuantizationConfig(backend="torch")
    near, far = (quantize(model, config, [dict(given)]).distance for given in (batch, longer))
    assert near is not None
    assert far is not None
    assert near.error == pytest.approx(far.error, rel=0.05)
    assert (near.rows, near.changed) == (10, far.changed)


def test_mixed_precision_compares_tokens(model: Any) -> None:
    batch = dict(tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt"))
    config = QuantizationConfig.from_dict({"backend": "torch", "mixed": {"max_kl": 1e-9}})
    made = quantize(model, config, [batch])
    assert made.mixed is not None
    assert made.mixed.kept > 0


def test_the_folder_names_labels_and_kind(model: Any, tmp_path: Path) -> None:
    folder = saved(model, tmp_path / "folder", "torch", "dynamic")
    assert json.loads((folder / "hfcompress.json").read_text())["output"] == "tokens"
    named = json.loads((folder / "config.json").read_text())["id2label"]
    assert list(named.values()) == TAGS
