"""``load(folder).predict``: the scores of CrossEncoder in every engine."""

from __future__ import annotations

import pickle
import runpy
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from datasets import Dataset

import hfcompress
from hfcompress.errors import ConfigError, DataError
from hfcompress.models.cross_encoder import AutoCrossEncoder
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from hfcompress.quantization.reranker import Reranker
from tests.tasks.ranked import PAIRS, reranker_folder
from tests.tiny_models import text_batches
from tests.tiny_tokenizers import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("shared_exports")


def reranker(folder: Path) -> Reranker:
    return cast(Reranker, hfcompress.load(folder))


def quantized(folder: Path, backend: str, **options: Any) -> Path:
    model = AutoCrossEncoder.from_pretrained(reranker_folder(folder / "dense"))
    config = QuantizationConfig.from_dict({"backend": backend, **options})
    made = quantize(model, config, text_batches(vocabulary=25))
    return made.save(folder / "small", tiny_tokenizer())


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_every_engine_gives_the_scores_of_the_model(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    narrow = {"reduce_range": True} if backend == "onnxruntime" else {}
    found = reranker(quantized(tmp_path, backend, **narrow)).predict(PAIRS)
    model = AutoCrossEncoder.from_pretrained(tmp_path / "dense")
    model.save_pretrained(tmp_path / "dense")
    expected = reranker(tmp_path / "dense").predict(PAIRS)
    assert expected.max() - expected.min() > 0.2
    np.testing.assert_allclose(found, expected, atol=0.06)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    return quantized(tmp_path_factory.mktemp("reranker"), "onnxruntime", mode="none")


def test_ranks_as_cross_encoder_does(plain: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    passages = [passage for _, passage in PAIRS]
    theirs = library.CrossEncoder(str(plain.parent / "dense"), device="cpu")
    found = reranker(plain).rank("the film", passages, top_k=2)
    expected = theirs.rank("the film", passages, top_k=2)
    assert [row["corpus_id"] for row in found] == [row["corpus_id"] for row in expected]
    for ours, other in zip(found, expected, strict=True):
        assert ours["score"] == pytest.approx(other["score"], abs=1e-5)


def test_takes_pairs_as_callers_have_them(plain: Path) -> None:
    ours = reranker(plain)
    scores = ours.predict(PAIRS)
    np.testing.assert_allclose(ours.predict([list(pair) for pair in PAIRS], 1), scores, atol=1e-6)
    np.testing.assert_allclose(ours.predict(PAIRS[1]), scores[1], atol=1e-6)
    assert np.ndim(ours.predict(PAIRS[1])) == 0
    np.testing.assert_allclose(pickle.loads(pickle.dumps(ours)).predict(np.array(PAIRS)), scores)
    column = Dataset.from_dict({"pair": PAIRS})["pair"]
    np.testing.assert_allclose(ours.predict(column), scores, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a text", "a str is not a pair"),
        ([], "nothing to score"),
        (["a", "b", "c"], "example 0 is 'a'; give a tuple"),
        ([("a", "b", "c")], "example 0 is \\('a', 'b', 'c'\\)"),
        ([("a", None)], "example 0 is None"),
    ],
)
def test_refuses_what_is_not_a_pair(plain: Path, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        reranker(plain).predict(given)


def test_refuses_an_empty_batch(plain: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        reranker(plain).predict(PAIRS, batch_size=0)


def test_example_script_prints_scores(
    plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["example.py", "the film", "a good plot", "dull music"])
    runpy.run_path(str(plain / "example.py"), run_name="__main__")
    printed = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    pairs = [("the film", "a good plot"), ("the film", "dull music")]
    np.testing.assert_allclose(printed, reranker(plain).predict(pairs), atol=1e-3)
