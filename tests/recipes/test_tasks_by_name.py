"""The shipped recipes of other tasks than single labels: on the hub by name, and on files."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertForTokenClassification

from hfcompress.recipes.library import shipped_recipes
from hfcompress.recipes.schema import load_recipe
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import Experiment, prepare
from hfcompress.sweep.run import run
from hfcompress.utils import Progress
from tests.hub_server import HubServer, folder_files, serving
from tests.tasks.asked import asked_rows, reader
from tests.tasks.masked import masked_bert, plain_rows
from tests.tasks.tagged import TAGS, tagged_rows, write_rows
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import sentence, tiny_tokenizer

FEELINGS = [f"feeling {number}" for number in range(5)]
ENTAILMENT = ["entailment", "neutral", "contradiction"]
TEXT = Value("string")


def named(model: Any, names: list[str], problem: str | None = None) -> Any:
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.config.problem_type = problem
    return model


def pairs(first: str, second: str, kind: Any) -> tuple[Features, list[dict[str, Any]]]:
    generator = random.Random(0)
    rows = [
        {first: sentence(generator, True), second: sentence(generator, False),
         "label": number % len(kind.names) if isinstance(kind, ClassLabel) else number % 11 / 2}
        for number in range(160)
    ]  # fmt: skip
    return Features({first: TEXT, second: TEXT, "label": kind}), rows


def feelings() -> tuple[Features, list[dict[str, Any]]]:
    generator = random.Random(0)
    rows = [
        {"text": sentence(generator, True), "labels": generator.sample(range(5), 1 + number % 2)}
        for number in range(160)
    ]
    return Features({"text": TEXT, "labels": List(ClassLabel(names=FEELINGS))}), rows


def tags() -> tuple[Features, list[dict[str, Any]]]:
    rows = [
        {"tokens": row["tokens"], "ner_tags": [TAGS.index(tag) for tag in row["ner_tags"]]}
        for row in tagged_rows(160)
    ]
    return Features({"tokens": List(TEXT), "ner_tags": List(ClassLabel(names=TAGS))}), rows


def questions() -> tuple[None, list[dict[str, Any]]]:
    return None, asked_rows(160)


SOURCES: dict[str, tuple[Any, Any]] = {
    "ner": (lambda: named(tiny_bert(5, kind=BertForTokenClassification), TAGS), tags),
    "qa-distilbert-squad": (reader, questions),
    "pairs-mrpc": (
        lambda: tiny_bert(2),
        lambda: pairs("sentence1", "sentence2", ClassLabel(names=["not_equivalent", "equivalent"])),
    ),
    "mnli": (
        lambda: named(tiny_bert(3), [name.upper() for name in ENTAILMENT]),
        lambda: pairs("premise", "hypothesis", ClassLabel(names=ENTAILMENT)),
    ),
    "regression-stsb": (
        lambda: tiny_bert(1),
        lambda: pairs("sentence1", "sentence2", Value("float32")),
    ),
    "multi-label": (
        lambda: named(tiny_bert(5), FEELINGS, "multi_label_classification"), feelings,
    ),
    "backbone": (masked_bert, lambda: (None, plain_rows(160))),
}  # fmt: skip
KINDS = {"ner": "tokens", "qa-distilbert-squad": "spans", "pairs-mrpc": "classification",
         "mnli": "classification", "regression-stsb": "regression",
         "multi-label": "multi_label", "backbone": "masked"}  # fmt: skip


@pytest.fixture(params=[*SOURCES])
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def model(name: str, tmp_path: Path) -> Path:
    SOURCES[name][0]().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with serving(monkeypatch, tmp_path / "hf") as server:
        yield server


def prepared(recipe: Any, tmp_path: Path) -> Experiment:
    return prepare(recipe, Progress(), StepCache(tmp_path / "steps"))


def test_names_of_the_hub_are_found(hub: HubServer, name: str, model: Path, tmp_path: Path) -> None:
    recipe = load_recipe(shipped_recipes()[name])
    assert recipe.model.path is not None
    hub.add("model", recipe.model.path, folder_files(model))
    features, rows = SOURCES[name][1]()
    buffer = io.BytesIO()
    Dataset.from_list(rows, features=features).to_parquet(buffer)
    config, side = recipe.data.name or "default", recipe.data.eval
    card = (
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n"
        f"  - {{split: train, path: {config}/train-*}}\n"
        f"  - {{split: {side}, path: {config}/{side}-*}}\n---\n"
    )
    files = {f"{config}/{one}-0.parquet": buffer.getvalue() for one in ("train", side)}
    hub.add("dataset", recipe.data.path, {"README.md": card.encode(), **files})
    experiment = prepared(recipe, tmp_path)
    assert experiment.examples.kind == KINDS[name]
    assert len(experiment.examples.eval) == 160
    assert not experiment.loaded.new_head


def written(name: str, folder: Path) -> Path:
    """The rows as people have them: names of labels, in files."""
    folder.mkdir()
    _, rows = SOURCES[name][1]()
    listed = {"ner": TAGS, "multi-label": FEELINGS}.get(name)
    column = {"ner": "ner_tags", "multi-label": "labels"}.get(name, "")
    if listed is not None:
        rows = [{**row, column: [listed[number] for number in row[column]]} for row in rows]
    if name == "mnli":
        rows = [{**row, "label": ENTAILMENT[row["label"]]} for row in rows]
    for file, part in (("train", rows[:128]), ("dev", rows[128:])):
        if name in ("ner", "qa-distilbert-squad", "multi-label", "backbone"):
            write_rows(folder / f"{file}.jsonl", part)
        else:
            lines = ["\t".join(part[0]), *("\t".join(map(str, row.values())) for row in part)]
            (folder / f"{file}.tsv").write_text("\n".join(lines))
    return folder


def test_local_files_take_their_place(name: str, model: Path, tmp_path: Path) -> None:
    changes = [f"model={model}", f"data.path={written(name, tmp_path / 'data')}"]
    if name == "mnli":
        changes.append("data.eval=validation")
    recipe = load_recipe(shipped_recipes()[name], changes)
    experiment = prepared(recipe, tmp_path)
    assert experiment.examples.kind == KINDS[name]
    assert len(experiment.examples.eval) == 32


def test_a_recipe_of_questions_runs_on_files(tmp_path: Path) -> None:
    reader().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    data = written("qa-distilbert-squad", tmp_path / "data")
    changes = [f"model={tmp_path / 'model'}", f"data.path={data}", "prune.sparsity=0.5",
               "quantize.backend=torch", "quantize.mode=dynamic"]  # fmt: skip
    recipe = load_recipe(shipped_recipes()["qa-distilbert-squad"], changes)
    (row,) = run(recipe, tmp_path / "run", draw=False).rows
    assert (row["metric"], row["n"]) == ("f1", 32)
