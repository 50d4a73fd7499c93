"""Models that answer for each token (taggers, readers, backbones) go through every verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hfcompress
from hfcompress.benchmarking.check import check
from hfcompress.benchmarking.config import BenchConfig
from hfcompress.benchmarking.subjects import find_subjects
from hfcompress.cli.commands import main
from hfcompress.errors import ConfigError
from hfcompress.recipes.schema import parse_recipe
from hfcompress.search import candidates as candidates_module
from hfcompress.search.compress import compress
from hfcompress.search.target import CompressTarget
from hfcompress.sweep.run import run
from tests.tasks.asked import asked_rows, save_reader
from tests.tasks.masked import plain_rows, save_backbone
from tests.tasks.tagged import save_tagger, tagged_rows, write_rows

TASKS: dict[str, tuple[Callable[..., Path], Callable[..., list[dict[str, Any]]]]] = {
    "token-classification": (save_tagger, tagged_rows),
    "question-answering": (save_reader, asked_rows),
    "fill-mask": (save_backbone, plain_rows),
}


@pytest.fixture(params=[*TASKS])
def task(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def source(task: str, tmp_path: Path) -> dict[str, Any]:
    """A recipe's model, data and task."""
    save, rows = TASKS[task]
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", rows(24))
    write_rows(tmp_path / "data" / "dev.jsonl", rows(12, seed=1))
    model = str(save(tmp_path / "model"))
    return {"name": "verbs", "model": model, "data": str(tmp_path / "data"), "task": task}


def test_check_finds_nothing_that_fails(source: dict[str, Any]) -> None:
    found = check(source["model"], engines=("torch",)).verbs
    assert [(verb.verb, verb.status) for verb in found] == [
        (name, "works") for name in ("prune", "shrink", "student", "quantize torch")
    ]


def test_compress_finds_a_folder_that_answers(
    source: dict[str, Any], task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_module, "SHARES", {0.5: 0.6})
    seen: list[list[candidates_module.Candidate]] = []
    every = candidates_module.candidates

    def noted(*given: Any) -> list[candidates_module.Candidate]:
        seen.append(every(*given))
        return seen[-1]

    monkeypatch.setattr("hfcompress.search.compress.candidates", noted)
    drop = 1e9 if task == "fill-mask" else 100
    target = CompressTarget.from_dict({"backend": "torch", "max_size": "10MB", "max_drop": drop})
    result = compress(source["model"], source["data"], target, task=task, output=tmp_path / "out")
    assert result.sentence.startswith("Found: int8")
    names = [candidate.name for candidate in seen[0]]
    assert any("50% of the encoder" in name for name in names)
    assert not any("CNN" in name for name in names)
    if task == "fill-mask":  # another vocabulary has another pseudo-perplexity
        assert not any("tokens" in name for name in names)
    folder = result.model
    assert folder is not None
    card = (folder / "README.md").read_text()
    assert f"pipeline_tag: {task}" in card
    answer: Any = hfcompress.load(folder)
    if task == "question-answering":
        assert answer(question="the good film", context="a fine plot")["answer"] in "a fine plot"
    elif task == "fill-mask":
        assert {"token_str", "sequence"} <= answer("good [MASK]")[0].keys()
    else:
        assert {"entity", "word"} <= answer("good film", ignore_labels=[])[0].keys()


def test_vocabulary_and_new_texts_are_made_of_the_words(source: dict[str, Any], task: str) -> None:
    steps: list[dict[str, Any]] = [{"vocabulary": {"min_count": 1}}]
    if task != "question-answering":  # augmentation makes single texts
        steps.append(
            {
                "distill": {
                    "augmentation": {"share": 0.5},
                    "max_steps": 2,
                    "distillation": {"alpha": 1},
                }
            }
        )
    (row,) = run(parse_recipe({**source, "steps": steps}), draw=False).rows
    assert row["n"] == 12


def test_a_student_without_attention_is_refused(source: dict[str, Any]) -> None:
    asked = parse_recipe({**source, "steps": [{"distill": {"text_student": {}}}]})
    with pytest.raises(ConfigError, match="a text_student gives one row of logits for a text"):
        run(asked, draw=False)


def test_bench_times_them(source: dict[str, Any]) -> None:
    config = BenchConfig(engine=("torch-fp32", "torch-int8"), length=(6,), memory=False)
    subjects = find_subjects([source["model"]], config, print, print)
    assert [subject.engine for subject in subjects] == ["torch-fp32", "torch-int8"]
    for subject in subjects:
        ids = torch.ones(2, 6, dtype=torch.int64).numpy()
        logits = subject.open(1).logits({"input_ids": ids, "attention_mask": ids})
        assert logits.shape[0] == 2
        assert 6 in logits.shape


def test_predict_prints_the_entities_of_a_tagger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    source = save_tagger(tmp_path / "model")
    model = AutoModelForTokenClassification.from_pretrained(source)
    small = hfcompress.quantize(model, hfcompress.QuantizationConfig(backend="torch"))
    folder = small.save(tmp_path / "folder", AutoTokenizer.from_pretrained(source))
    texts = [" ".join(row["tokens"]) for row in tagged_rows(3)]
    tag: Any = hfcompress.load(folder)
    expected = []
    for text, entities in zip(texts, tag(texts, aggregation_strategy="simple"), strict=True):
        expected.append(text)
        expected += [
            f"  {one['entity_group']} {one['score']:.4f}  {text[one['start'] : one['end']]}"
            for one in entities
        ] or ["  no entities"]
    assert main(["predict", str(folder), *texts]) == 0
    assert capsys.readouterr().out.splitlines() == expected
    assert any(line.startswith("  ") and "entities" not in line for line in expected)
