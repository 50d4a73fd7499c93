"""Quantized models that answer questions: every engine answers as transformers 4's pipeline did."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hfcompress
from hfcompress.cli.commands import main
from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from tests.tasks.asked import asked_rows, reader
from tests.tiny_tokenizers import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("shared_exports")
ROWS = [*asked_rows(6), *asked_rows(4, seed=1, filler=120)]
ASKED = [{"question": row["question"], "context": row["context"]} for row in ROWS]
MODES = [("onnxruntime", "none"), ("openvino", "none"), ("torch", "dynamic"),
         ("onnxruntime", "dynamic"), ("openvino", "static"), ("torchao", "dynamic")]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return reader()


def batches() -> list[dict[str, Any]]:
    texts = [[row[name] for row in ASKED[:6]] for name in ("question", "context")]
    return [dict(tiny_tokenizer()(*texts, padding=True, return_tensors="pt"))]


def saved(model: Any, folder: Path, backend: str, mode: str) -> Path:
    pytest.importorskip(backend)
    config = QuantizationConfig.from_dict({"backend": backend, "mode": mode})
    return quantize(model, config, batches()).save(folder, tiny_tokenizer())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


@pytest.fixture
def answer(model: Any, folders: Path) -> Any:
    folder = folders / "fp32"
    return hfcompress.load(
        folder if folder.exists() else saved(model, folder, "onnxruntime", "none")
    )


def pipeline(
    model: Any, question: str, context: str, top_k: int = 1, none: bool = False, longest: int = 15
) -> Any:
    """``QuestionAnsweringPipeline`` of transformers 4.57, every span after the other."""
    tokenizer: Any = tiny_tokenizer()
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=64, stride=32,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    answers: list[dict[str, Any]] = []
    no_answer = 1000000.0
    for place, ids in enumerate(encoded["input_ids"]):
        with torch.no_grad():
            found = model(input_ids=torch.tensor([ids]))
        sides = encoded.sequence_ids(place)
        kept = torch.tensor([side == 1 or token == 0 for token, side in enumerate(sides)])
        start, end = (
            torch.where(kept, part[0], -10000.0).softmax(0).tolist()
            for part in (found.start_logits, found.end_logits)
        )
        no_answer = min(no_answer, start[0] * end[0])
        spans = [
            (start[first] * end[last], first, last)
            for first in range(1, len(ids))
            for last in range(first, min(len(ids), first + longest))
        ]
        for score, first, last in sorted(spans, reverse=True)[: 2 * top_k + 10]:
            begin = encoded["offset_mapping"][place][first][0]
            stop = encoded["offset_mapping"][place][last][1]
            same = [one for one in answers if one["answer"] == context[begin:stop]]
            if same:
                same[0]["score"] += score
            else:
                answers.append(
                    {"score": score, "start": begin, "end": stop, "answer": context[begin:stop]}
                )
    if none:
        answers.append({"score": no_answer, "start": 0, "end": 0, "answer": ""})
    best = sorted(answers, key=lambda one: one["score"], reverse=True)[:top_k]
    return best[0] if len(best) == 1 else best


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert found == {**expected, "score": pytest.approx(expected["score"], abs=1e-4)}


@pytest.mark.parametrize(("backend", "mode"), MODES)
def test_folders_answer_as_the_pipeline(
    model: Any, tmp_path: Path, backend: str, mode: str
) -> None:
    folder = saved(model, tmp_path / "folder", backend, mode)
    found: Any = hfcompress.load(folder)(ASKED, batch_size=3)
    expected = [pipeline(model, **row) for row in ASKED]
    assert len({one["answer"] for one in expected}) > 5
    if mode == "none":
        assert_same(found, expected)
    else:  # the weights are random, and no answer is far ahead of the others
        same = [a["answer"] == b["answer"] for a, b in zip(found, expected, strict=True)]
        assert np.mean(same) > 0.5
    assert json.loads((folder / "hfcompress.json").read_text())["output"] == "spans"


def test_options_are_those_of_the_pipeline(model: Any, answer: Any) -> None:
    assert_same(answer(ASKED, top_k=3), [pipeline(model, **row, top_k=3) for row in ASKED])
    options = {"handle_impossible_answer": True, "max_answer_len": 4}
    expected = [pipeline(model, **row, none=True, longest=4) for row in ASKED]
    assert_same(answer(ASKED, **options), expected)
    assert all(len(one["answer"].split()) <= 4 for one in expected)
    narrow = answer(ASKED[-1], max_seq_len=20, doc_stride=4)
    assert narrow["answer"] == ASKED[-1]["context"][narrow["start"] : narrow["end"]]
    assert narrow != answer(ASKED[-1])


def test_questions_are_asked_in_any_usual_form(answer: Any) -> None:
    expected = answer(ASKED[:2])
    questions, contexts = ([row[name] for row in ASKED[:2]] for name in ("question", "context"))
    assert_same(answer(question=questions, context=contexts), expected)
    assert_same(answer(list(zip(questions, contexts, strict=True))), expected)
    assert_same(answer(question=questions[0], context=contexts[0]), expected[0])
    assert_same(answer((questions[0], contexts[0])), expected[0])
    assert_same(answer(question=[questions[0]], context=contexts[0]), expected[:1])


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (["the film"], {}, "'the film' has no context"),
        ([[]], {}, "nothing to answer"),
        ([["a"]], {}, "example 0 has no question and context"),
        ([ASKED[0]], {"question": "what"}, "not both"),
        ([], {"question": "what"}, "give question=... and context=..."),
        ([], {"question": ["a", "b"], "context": ["c"]}, "2 questions and 1 contexts"),
        ([], {"question": " ", "context": "c"}, "the question of example 0 is ' '"),
        ([], {"question": "film " * 64, "context": "film"}, "a question of 64 tokens"),
    ],
)
def test_refuses_what_is_no_question(
    answer: Any, arguments: list[Any], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        answer(*arguments, **options)


def test_refuses_options_out_of_range(answer: Any) -> None:
    for options, says in (
        ({"top_k": 0}, "top_k is 0"),
        ({"max_seq_len": 65}, "reads 1 to 64 tokens"),
        ({"doc_stride": 64}, "doc_stride is 64"),
    ):
        with pytest.raises(ConfigError, match=says):
            answer(ASKED[0], **options)
    with pytest.raises(ModelError, match="gives answers, not labels"):
        answer.scores("film")


def test_script_and_command_print_the_answer(
    model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend, mode in MODES[:3]:
        folder = saved(model, tmp_path / backend, backend, mode)
        found: Any = hfcompress.load(folder)
        for row in (ASKED[0], ASKED[-1]):
            best = found(row)
            monkeypatch.setattr(sys, "argv", ["example.py", row["question"], row["context"]])
            runpy.run_path(str(folder / "example.py"), run_name="__main__")
            printed = capsys.readouterr().out.split()
            assert " ".join(printed[:-2]) == best["answer"]
            assert float(printed[-2]) == pytest.approx(best["score"], abs=2e-4)
            assert printed[-1] == f"{best['start']}-{best['end']}"
    assert main(["predict", str(folder), *ASKED[0].values(), *ASKED[1].values()]) == 0
    printed = capsys.readouterr().out.splitlines()
    answers = found(ASKED[:2])
    assert [line.split("  ")[0] for line in printed] == [
        f"{one['answer']} {one['score']:.4f}" for one in answers
    ]
    assert main(["predict", str(folder), "the good film"]) == 2
    assert "a question and its context" in capsys.readouterr().err


def test_a_static_shape_changes_no_answer(model: Any, tmp_path: Path) -> None:
    folder = saved(model, tmp_path / "folder", "openvino", "none")
    plain: Any = hfcompress.load(folder)(ASKED)
    shaped: Any = hfcompress.load(folder, shape=(8, 64))(ASKED)
    assert_same(shaped, plain)


def test_the_distance_is_over_the_tokens_of_a_row(model: Any) -> None:
    texts = [[row[name] for row in ASKED[:6]] for name in ("question", "context")]
    longer = dict(
        tiny_tokenizer()(*texts, padding="max_length", max_length=60, return_tensors="pt")
    )
    config = QuantizationConfig(backend="torch")
    made = [quantize(model, config, [given]) for given in (batches()[0], longer)]
    near, far = (one.distance for one in made)
    assert near is not None
    assert far is not None
    assert near.error == pytest.approx(far.error, rel=0.2)
    assert near.rows == far.rows == 6
    assert near.changed == pytest.approx(far.changed, abs=0.1)
    found: Any = made[0](**batches()[0])
    assert found.start_logits.shape == found.end_logits.shape == (6, longest_row())
    assert made[0].outputs == 2


def longest_row() -> int:
    return int(batches()[0]["input_ids"].shape[1])


def test_mixed_precision_compares_answers(model: Any) -> None:
    config = QuantizationConfig.from_dict({"backend": "torch", "mixed": {"max_kl": 1e-9}})
    made = quantize(model, config, batches())
    assert made.mixed is not None
    assert made.mixed.kept > 0
    assert np.isfinite(made.mixed.uniform.kl)


def test_a_tokenizer_that_pads_on_the_left_reads_the_context_first(
    model: Any, tmp_path: Path
) -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.padding_side = "left"
    config = QuantizationConfig(backend="torch")
    answer: Any = hfcompress.load(quantize(model, config).save(tmp_path / "folder", tokenizer))
    for row, found in zip(ASKED, answer(ASKED, batch_size=1), strict=True):
        assert found["score"] > 0
        assert row["context"][found["start"] : found["end"]] == found["answer"] != ""
