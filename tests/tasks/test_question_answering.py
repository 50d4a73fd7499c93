"""Answers in a context: what is read, which tokens are asked for, and what is measured."""

from __future__ import annotations

import collections
import itertools
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertForTokenClassification, PreTrainedConfig

from hfcompress import Calibration, PruningConfig, ShrinkConfig, prune, shrink
from hfcompress.data.config import DataConfig
from hfcompress.errors import CalibrationError, ConfigError, DataError, ModelError
from hfcompress.inference import predict, without_labels
from hfcompress.measure.answers import answer_score
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.run import run
from hfcompress.tasks.question_answering import LONGEST_ANSWER
from hfcompress.tasks.question_answering import QUESTION_ANSWERING as TASK
from tests.tasks.asked import asked_rows, reader, save_reader
from tests.tasks.tagged import write_rows
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

CONFIG = DataConfig(path="data")


def load(rows: list[dict[str, Any]], need_train: bool = False, **fields: Any) -> Any:
    data = Dataset.from_list(rows)
    return TASK.load(CONFIG.replace(**fields), need_train, splits={"train": data})


def encoded(
    rows: list[dict[str, Any]], limit: int = 64, tokenizer: Any = None, **fields: Any
) -> tuple[Any, Any]:
    examples = load(rows, **fields)
    data = TASK.encode(examples, examples.eval, tokenizer or tiny_tokenizer(), limit)
    return data, TASK.references(data, ())


def perfect(data: Any) -> Any:
    """Outputs whose highest logits are the labels."""
    outputs = np.zeros((int(data.starts[-1]), 2), np.float32)
    for row, start in zip(data.rows, data.starts, strict=False):
        outputs[start + row["start_positions"], 0] = 9
        outputs[start + row["end_positions"], 1] = 9
    return outputs


# --- SQuAD's own script (evaluate-v2.0.py), line by line -----------------------------------------


def squad_normalize(s: str) -> str:
    def remove_articles(text: str) -> str:
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        return "".join(ch for ch in text if ch not in set(string.punctuation))

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def squad_f1(a_gold: str, a_pred: str) -> float:
    gold_toks, pred_toks = squad_normalize(a_gold).split(), squad_normalize(a_pred).split()
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return float(gold_toks == pred_toks)
    if num_same == 0:
        return 0.0
    precision, recall = 1.0 * num_same / len(pred_toks), 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def squad_scores(predicted: str, answers: list[str]) -> tuple[float, float]:
    gold_answers = [a for a in answers if squad_normalize(a)]
    if not gold_answers:
        gold_answers = [""]
    exact = max(float(squad_normalize(a) == squad_normalize(predicted)) for a in gold_answers)
    return max(squad_f1(a, predicted) for a in gold_answers), exact


ANSWERS = ["", "the", "The Eiffel tower!", "eiffel  tower", "in an 1843 paper", "1843", "a.b", "ab",
           "Ada Lovelace, of London", "lovelace of the london", "O'Brien's", "obriens"]  # fmt: skip


def test_metrics_are_those_of_the_squad_script() -> None:
    golds = [[], *[[one] for one in ANSWERS], ANSWERS[2:5], ["the", "1843"]]
    for predicted in ANSWERS:
        for gold in golds:
            f1, exact = squad_scores(predicted, gold)
            assert answer_score("f1", predicted, gold) == pytest.approx(f1)
            assert answer_score("exact_match", predicted, gold) == exact


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["good film"], "answer_start": [2]},
        {"text": "good film", "answer_start": 2},
        [{"text": "good film", "answer_start": 2}],
    ],
)
def test_reads_answers_in_every_usual_form(answers: object) -> None:
    examples = load([{"question": "what", "context": "a good film", "answers": answers}])
    assert examples.columns == ("question", "context")
    assert examples.kind == "spans"
    assert examples.eval["label"][:] == [{"text": ["good film"], "answer_start": [2]}]


def test_rows_without_answer_are_read_and_said() -> None:
    examples = load(asked_rows(6, unanswerable=2))
    assert [bool(label["text"]) for label in examples.eval["label"][:]] == [False] * 2 + [True] * 4
    (note,) = examples.notes
    assert note.startswith("2 of 6 measured questions have no answer")


def row(**changes: Any) -> dict[str, Any]:
    answers = {"text": ["good"], "answer_start": [2]}
    return {"question": "what", "context": "a good film", "answers": answers, **changes}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (row(answers={"text": ["good"], "answer_start": [3]}),
         "'good' at character 3 of its context, where 'ood ' is .it is at 2.; correct"),
        (row(answers={"text": ["bad"], "answer_start": [2]}), "it is nowhere in it"),
        (row(answers={"text": ["good"], "answer_start": [-1]}), "at character -1"),
        (row(answers={"text": ["good", "film"], "answer_start": [2]}), "2 answers and 1 places"),
        (row(answers="good"), "row 0 of the eval side has 'good' in 'answers'; give answers as"),
        (row(answers={"text": [3], "answer_start": [2]}), "an answer is a text"),
        (row(context=" "), "has no usable row"),
        ({"sentence": "a", "label": "b"}, "reads the columns question, context and answers"),
    ],
)  # fmt: skip
def test_refuses_rows_that_are_not_questions(given: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        load([given])


def test_refuses_one_column_of_text() -> None:
    with pytest.raises(DataError, match="name two: \\[question, context\\]"):
        load([row()], text="context")
    renamed = [{"q": "what", "c": "a good film", "right": row()["answers"]}]
    assert load(renamed, text=["q", "c"], label="right").columns == ("q", "c")


def test_questions_on_one_context_stay_on_one_side() -> None:
    rows = [{**one, "question": question} for one in asked_rows(10) for question in ("a", "b")]
    examples = load(rows, need_train=True)
    sides = [set(side["context"][:]) for side in (examples.train, examples.eval)]
    assert not sides[0] & sides[1]
    assert len(examples.train) + len(examples.eval) == 20


# --- encoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_are_the_tokens_of_the_answer(side: str) -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.padding_side = side
    rows = asked_rows(12, unanswerable=3, filler=4)
    data, _ = encoded(rows, tokenizer=tokenizer)
    ((places, batch),) = data.batches(12)
    for place, ids, start, end in zip(
        places, batch["input_ids"], batch["start_positions"], batch["end_positions"], strict=True
    ):
        found = tokenizer.decode(ids[start : end + 1])
        assert found == (rows[place]["answers"]["text"] or ["[CLS]"])[0]


def test_long_contexts_are_read_in_windows_that_overlap() -> None:
    rows = asked_rows(8, filler=40)
    data, asked = encoded(rows, limit=16, stride=3)
    assert len(data) > 16
    assert all(length <= 16 for length in data.lengths)
    assert [len(parts) for parts in asked.windows] == [
        sum(number == place for number in data.rows["example"][:]) for place in range(8)
    ]
    for row, parts in zip(rows, asked.windows, strict=True):
        for before, after in itertools.pairwise(parts):
            assert before.begins[-3:].tolist() == after.begins[:3].tolist()
        assert parts[-1].ends[-1] == len(row["context"])
    assert TASK.metric("exact_match", perfect(data), asked) == 1.0
    cut, _ = encoded(rows, limit=16, overflow="cut")
    assert len(cut) == 8
    assert "of 8 answers are in no window whole" in cut.notes[0]


def test_a_question_of_any_length_leaves_room_or_is_refused() -> None:
    rows = [row(question="film " * length) for length in (1, 9)]
    data, _ = encoded(rows, limit=14, stride=6)
    assert data.rows["example"][:] == [0, 1, 1]
    with pytest.raises(DataError, match="the question of example 1 has 9 tokens"):
        encoded(rows, limit=12)


def test_batches_and_padding_change_no_answer() -> None:
    data, asked = encoded(asked_rows(9, filler=30), limit=20)
    model = reader()
    alone, together = (predict(model, data, size) for size in (1, 7))
    np.testing.assert_allclose(alone, together, atol=1e-4)
    assert asked.predicted(alone) == asked.predicted(together)
    some = np.array([4, 1])
    np.testing.assert_allclose(
        predict(model, data.select(some), 2), alone[data.places(some)], atol=1e-4
    )


# --- measuring -----------------------------------------------------------------------------------


def slow_answer(logits: Any, windows: list[dict[str, Any]], context: str, none: bool) -> str:
    """Every span of every window, one after the other."""
    best, answer, no_answer = -np.inf, "", np.inf
    for window, (starts, ends) in zip(windows, logits, strict=True):
        first, count = window["first"], len(window["begins"])
        no_answer = min(no_answer, starts[window["none"]] + ends[window["none"]])
        for begin in range(count):
            for end in range(begin, min(count, begin + LONGEST_ANSWER)):
                score = starts[first + begin] + ends[first + end]
                if score > best:
                    best = score
                    answer = context[window["begins"][begin] : window["ends"][end]]
    return "" if none and no_answer > best else answer


@pytest.mark.parametrize("unanswerable", [0, 4])
def test_the_answer_is_the_best_span_of_all_windows(unanswerable: int) -> None:
    rows = asked_rows(12, unanswerable=unanswerable, filler=60)
    data, asked = encoded(rows, limit=48)
    outputs = np.random.default_rng(0).normal(size=(int(data.starts[-1]), 2)).astype(np.float32)
    outputs[data.starts[:-1]] += 2.0 if unanswerable else 9.0  # "no answer" wins now and then
    found = asked.predicted(outputs)
    parts = np.split(outputs, data.starts[1:-1])
    for place, (row, answer) in enumerate(zip(rows, found, strict=True)):
        own = [n for n, example in enumerate(data.rows["example"][:]) if example == place]
        logits, windows = [parts[n].T for n in own], [data.rows[n] for n in own]
        assert answer == slow_answer(logits, windows, row["context"], unanswerable > 0)
    assert ("" in found) == (unanswerable > 0)
    assert any(found)


def test_the_comparison_with_dense_is_paired_over_questions() -> None:
    data, asked = encoded(asked_rows(30, unanswerable=6))
    right = perfect(data)
    wrong = right.copy()
    for place in range(0, len(data), 3):
        wrong[data.starts[place] : data.starts[place + 1]] = 0
        wrong[data.starts[place] + 4 : data.starts[place] + 5] = 9
    found = TASK.quality("f1", wrong, asked, right)
    assert (found.n, found.mcnemar_p) == (30, None)
    assert found.drop == pytest.approx(1 - found.value)
    low, drop, high = found.drop_low or 0.0, found.drop or 0.0, found.drop_high or 0.0
    assert 0 < low < drop < high
    assert found.paired_p is not None
    assert found.paired_p < 0.01
    ours, theirs = asked.predicted(wrong), asked.predicted(right)
    assert found.agreement == np.mean([a == b for a, b in zip(ours, theirs, strict=True)])
    scores = [squad_scores(answer, list(asked.answers[place])) for place, answer in enumerate(ours)]
    assert found.value == pytest.approx(np.mean([f1 for f1, _ in scores]))
    assert TASK.metric("exact_match", wrong, asked) == np.mean([exact for _, exact in scores])
    sides = TASK.by_class(wrong, asked, right, ())
    assert [(side["name"], side["n"], side["dense"]) for side in sides] == [
        ("with an answer", 24, 1.0), ("without an answer", 6, 1.0)
    ]  # fmt: skip
    assert TASK.by_class(right, encoded(asked_rows(2))[1], right, ()) == []


def test_outputs_and_heads_that_do_not_fit_are_refused() -> None:
    data, asked = encoded(asked_rows(2))
    with pytest.raises(DataError, match="two; use the same rows"):
        TASK.metric("f1", np.zeros((3, 2), np.float32), asked)
    with pytest.raises(DataError, match="not finite"):
        TASK.metric("f1", perfect(data) * np.nan, asked)
    with pytest.raises(DataError, match="'em' is not a metric of question-answering"):
        TASK.metric("em", perfect(data), asked)
    with pytest.raises(ModelError, match="has 3 outputs for a token"):
        TASK.check_head(PreTrainedConfig.from_dict({"num_labels": 3}), "m")


# --- recipes -------------------------------------------------------------------------------------


def recipe(folder: Path, **changes: Any) -> Any:
    save_reader(folder / "model")
    (folder / "data").mkdir()
    write_rows(folder / "data" / "train.jsonl", asked_rows(24))
    write_rows(folder / "data" / "dev.jsonl", asked_rows(12, seed=1, unanswerable=3))
    data = {
        "name": "answers", "task": "question-answering", "model": str(folder / "model"),
        "data": {"path": str(folder / "data"), "max_length": 14},
        "steps": [{"prune": {"sparsity": 0.8}}],
    }  # fmt: skip
    return parse_recipe({**data, **changes})


def test_a_recipe_measures_answers_after_every_step(tmp_path: Path) -> None:
    steps = [
        {"finetune": {"max_steps": 2}}, {"prune": {"sparsity": 0.5, "method": "wanda"}},
        {"shrink": {"macs": 0.8, "calibration_rows": 16}}, {"distill": {"max_steps": 2}},
        {"quantize": {"backend": "torch"}},
    ]  # fmt: skip
    measure = {"every_step": True, "also": ["exact_match"]}
    rows = run(recipe(tmp_path, steps=steps, measure=measure), draw=False).rows
    assert [row["method"] for row in rows][-1] == "quantize"
    for found in rows:
        assert (found["metric"], found["n"]) == ("f1", 12)
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
        assert found["other_metrics"]["exact_match"] <= found["value"]
        assert [side["n"] for side in found["classes"]] == [9, 3]
    assert np.shape(rows[-2]["steps"][-1]["teacher_logits"]) == (4, 2)


def test_gradients_are_of_the_loss_on_the_answers() -> None:
    data, _ = encoded(asked_rows(8))
    ((_, batch),) = data.batches(8)
    masks = []
    for shift in (0, 1):
        moved = {**batch, "start_positions": batch["start_positions"] - shift}
        model = reader(initializer_range=0.5)
        report = prune(model, PruningConfig(method="taylor", sparsity=0.5), Calibration([moved]))
        masks.append(model.bert.encoder.layer[0].output.dense.weight != 0)
        assert report.layers
    assert not torch.equal(*masks)
    small = reader(initializer_range=0.5)
    shrink(small, ShrinkConfig(macs=0.7, score="taylor"), Calibration([batch]))
    with pytest.raises(CalibrationError, match="the calibration batches have no 'labels'"):
        shrink(
            reader(), ShrinkConfig(macs=0.7, score="taylor"), Calibration([without_labels(batch)])
        )


def test_a_head_of_another_task_is_named(tmp_path: Path) -> None:
    asked = recipe(tmp_path)
    tagger = tiny_bert(5, kind=BertForTokenClassification)
    tagger.save_pretrained(tmp_path / "model")
    with pytest.raises(
        ModelError,
        match="is a BertForTokenClassification, whose head answers token-classification and not "
        "question-answering: write task: token-classification; add a finetune",
    ):
        run(asked, draw=False)
    trained = asked.replace(steps=[{"finetune": {"max_steps": 1}}])
    (found,) = run(trained, draw=False).rows
    assert found["n"] == 12


def test_a_recipe_refuses_a_metric_of_another_task(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not one of question-answering"):
        run(recipe(tmp_path, measure={"metric": "accuracy"}), draw=False)
