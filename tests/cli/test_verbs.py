"""Verbs on the command line: each is a recipe of one step, its options are its config's fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from hfcompress.cli import main
from hfcompress.cli.arguments import make_parser
from hfcompress.cli.verbs import VERBS, run_overrides, step_config, verb_recipe
from hfcompress.models.loading import ModelConfig, load_model
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from hfcompress.recipes.library import find_recipe, shipped_recipes
from hfcompress.recipes.schema import Recipe
from hfcompress.tasks.registry import find_task


@pytest.fixture
def rows(write_data: Callable[..., Path]) -> Path:
    write_data("rows/train.tsv", rows=40)
    return write_data("rows/dev.tsv", rows=20, seed=1).parent


def recipe(*arguments: str) -> Recipe:
    options = make_parser(arguments[0]).parse_args(arguments)
    return verb_recipe(options.command, vars(options))


def test_a_verb_keeps_the_model_with_its_card_and_prints_rows_as_json(
    model_folder: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([
        "prune", str(model_folder), "--data", str(rows), "--sparsity", "0.5", "--method", "wanda",
        "--calibration-rows", "8", "--output", str(tmp_path / "small"), "--json",
    ]) == 0  # fmt: skip
    shown = capsys.readouterr()
    [row] = [json.loads(line) for line in shown.out.splitlines()]
    assert row["requested_sparsity"] == 0.5
    [folder] = (tmp_path / "small" / "models").iterdir()
    assert str(folder) in shown.err.replace("\n", "")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    weight = model.bert.encoder.layer[0].attention.self.query.weight
    assert (weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    data = ModelCard((folder / "README.md").read_text()).data.to_dict()  # type: ignore[no-untyped-call]
    assert data["pipeline_tag"] == "text-classification"
    assert str(tmp_path) not in (folder / "README.md").read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_of_a_verb_is_an_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser(verb).parse_args([verb, "--help"])
    shown = capsys.readouterr().out
    for name in set(step_config(verb).model_fields) - {"model", "seed", "data", "dry_run"}:
        assert f"--{name.replace('_', '-')}" in shown


def test_options_become_fields(model_folder: Path, rows: Path) -> None:
    found = recipe(
        "distill", str(model_folder), "--data", str(rows), "--student", "{layers: 1}", "--bf16",
        "--epochs", "0.5", "--seed", "3", "--set", "data.max_length=9",
        "--set", "measure.macs=false",
    )  # fmt: skip
    [step] = found.steps
    assert step == {"distill": {"student": {"layers": 1}, "bf16": True, "epochs": 0.5}}
    assert (found.seed, found.data.max_length, found.measure.macs) == (3, 9, False)
    assert found.save_models
    shrunk = recipe("shrink", str(model_folder), "--data", str(rows), "--macs", "0.5")
    assert shrunk.name == "shrink-model"
    pruned = recipe(
        "prune",
        str(model_folder),
        "--data",
        str(rows),
        "--sparsity",
        "0.5",
        "--targets",
        "query,key",
    )
    assert pruned.steps[0]["prune"]["targets"] == ["query", "key"]


def test_a_dry_run_shows_a_recipe_that_can_be_run(
    model_folder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    line = ["prune", str(model_folder), "--data", str(rows), "--sparsity", "0.5"]
    assert main([*line, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert Recipe.from_dict(yaml.safe_load(shown)) == Recipe.from_dict(recipe(*line).to_dict())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prnue", "x"], "unknown command 'prnue'; did you mean 'prune'?"),
        (["prune", "x", "--sparsty", "1"], "did you mean '--sparsity'?"),
        (["run", "x", "--workrs=2"], "did you mean '--workers'?"),
        (["run", "x", "--device", "cdua"], "did you mean 'cuda'?"),
        (["run", "x", "--engine", "threads"], "known are: process, ray"),
    ],
)
def test_misspelt_words_are_answered_with_the_nearest(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "MODEL", "--sparsity", "0.5"], "add --data DATA"),
        (["prune", "MODEL", "--data", "ROWS", "--sparsity", "2"], "sparsity"),
        (["prune", "MODEL", "--data", "ROWS", "--method", "magnitde"], "magnitude"),
        (
            ["prune", "MODEL", "--data", "ROWS", "--sparsity", "0.5", "--set", "data.txt=x"],
            "did you mean 'text'?",
        ),
        (["quantize", "none", "--data", "x", "--backend", "onnxruntme"], "mean 'onnxruntime'?"),
        (["validate", "quickstart", "--set", "modle=x"], "did you mean 'model'?"),
        (["validate", "quickstart", "--set", "prnue.sparsity=0.5"], "did you mean 'prune'?"),
        (["validate", "quickstart", "--set", "device=cud"], "did you mean 'cuda'?"),
    ],
)
def test_what_does_not_fit_is_one_line(
    arguments: list[str], message: str, model_folder: Path, rows: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    paths = {"MODEL": str(model_folder), "ROWS": str(rows)}
    assert main([paths.get(item, item) for item in arguments]) == 2
    assert message in capsys.readouterr().err


def test_every_run_takes_a_seed_and_a_device(model_folder: Path, rows: Path) -> None:
    pruned = recipe(
        "prune", str(model_folder), "--data", str(rows), "--sparsity", "0.5", "--device", "cpu"
    )  # fmt: skip
    assert pruned.device == "cpu"
    options = make_parser("run").parse_args(
        ["run", "quickstart", "--set", "measure.macs=false", "--seed", "4", "--device", "mps"]
    )
    assert run_overrides(options) == ["measure.macs=false", "seed=4", "device=mps"]
    assert make_parser("compress").parse_args(["compress", "x", "--seed", "5"]).seed == 5


def test_results_are_lines_of_json(
    model_folder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)

    def lines(*arguments: str) -> list[dict[str, Any]]:
        assert main([*arguments, "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    model, data = str(model_folder), ["--data", str(rows)]
    [planned] = lines("prune", model, *data, "--sparsity", "0.5", "--dry-run")
    assert planned["steps"][0]["prune"]["sparsity"] == 0.5
    [found] = lines("inspect", model, "--profiles")
    assert (
        found["parameters"] == BertForSequenceClassification.from_pretrained(model).num_parameters()
    )
    assert {fit["profile"]["name"] for fit in found["profiles"]} >= {"phone", "watch"}
    assert {row["name"] for row in lines("recipes")} == set(shipped_recipes())
    assert "settings" in lines("validate", "quickstart")[0]
    tried = lines("compress", model, *data, "--max-size", "10MB", "--dry-run")
    assert tried[0]["steps"][-1]["quantize"]
    assert tried[0]["bytes"] < 10_000_000
    (tmp_path / "layers.yaml").write_text(
        f"{{model: {model}, data: {rows}, steps: [{{prune: {{}}}}],"
        " grid: {prune.sparsity: [0.5, 0.9]}}"
    )
    [plan] = lines("sensitivity", "layers.yaml", "--dry-run")
    layers = {item["prune.targets"][0] for item in plan["pending"]}
    assert plan["trials"] == 2 * len(layers)
    assert not (tmp_path / "runs").exists()


def test_predictions_are_lines_of_json(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model(ModelConfig(path=str(model_folder)), find_task("text-classification"))
    small = quantize(loaded.model, QuantizationConfig(backend="torch"))
    small.save(tmp_path / "small", loaded.processor)
    assert main(["predict", str(tmp_path / "small"), "good one", "bad one", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in found] == ["good one", "bad one"]
    assert all(0 < row["score"] <= 1 for row in found)
    assert main(["predict", str(tmp_path / "small"), "good one"]) == 0
    label, score, *text = capsys.readouterr().out.split()  # int8 of one text, not of two
    assert (label, text) == (found[0]["label"], ["good", "one"])
    assert float(score) == pytest.approx(found[0]["score"], abs=0.01)


def test_quiet_shows_the_table_alone(
    model_folder: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["prune", str(model_folder), "--data", str(rows), "--sparsity", "0.5", "--quiet"]
    assert main([*line, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "note:" not in shown.out
    assert "50" in shown.out


def test_sparsify_packs_the_zeros(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    weight.data[weight.abs() < weight.abs().median()] = 0
    model.save_pretrained(model_folder)
    assert main(["sparsify", str(model_folder), "--output", str(tmp_path / "packed")]) == 0
    assert "weights packed" in capsys.readouterr().out
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert (again.bert.encoder.layer[0].intermediate.dense.weight == weight).all()


def test_a_shipped_recipe_is_found_with_and_without_its_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # not a recipe
    assert find_recipe("quickstart") == find_recipe("quickstart.yaml")
    assert find_recipe("quickstart") == shipped_recipes()["quickstart"]
    own = tmp_path / "quickstart.yaml"
    own.write_text("model: x\n")
    assert find_recipe("quickstart.yaml").samefile(own)
