"""A sweep end to end on a tiny model: rows, files, resuming, sharing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from hfcompress.errors import (
    ConfigError,
    OutputError,
)
from hfcompress.measure.size import calculate_sparsity
from hfcompress.recipes.schema import Recipe, expand
from hfcompress.sweep import trial as trial_module
from hfcompress.sweep.run import report, run
from hfcompress.sweep.sensitivity import run_sensitivity
from hfcompress.sweep.trial import line_label
from hfcompress.utils import Progress


class Heard(Progress):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.counts: list[tuple[int, int]] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def sweep(self, done: int, total: int) -> None:
        self.counts.append((done, total))


def test_rows_hold_what_was_measured(table_recipe: Recipe, tmp_path: Path) -> None:
    result = run(table_recipe, tmp_path / "run")
    assert [row["requested_sparsity"] for row in result] == [0, 0.3, 0.9]
    assert result[1:] == result.rows[1:]
    dense, some, most = result
    assert dense["drop"] == 0
    assert dense["agreement"] == 1
    assert abs(some["actual_sparsity"] - 0.3) < 1e-3
    assert some["nonzero_parameters"] < some["parameters"] == dense["parameters"]
    assert some["reference"] == 0.8
    assert some["note"] == "hello"
    assert most["reference"] is None
    assert most["n"] == 60
    assert most["low"] <= most["value"] <= most["high"]
    assert set(most["other_metrics"]) == {"f1"}
    assert most["macs"] > 0
    assert {layer["name"].split(".")[-1] for layer in most["layers"]} >= {"classifier", "query"}
    assert len({row["hash"] for row in result.rows}) == 3


def test_multiply_accumulates_are_counted_where_asked(table_recipe: Recipe) -> None:
    small = table_recipe.replace(grid=({"prune.sparsity": (0.5,)},), measure={"macs": False})
    assert run(small)[0]["macs"] is None


@pytest.mark.usefixtures("drawn_pictures")
def test_files_of_a_run(table_recipe: Recipe, tmp_path: Path) -> None:
    result = run(table_recipe, tmp_path / "run")
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written >= {
        "results.jsonl", "results.csv", "curve.png", "weights.png", "recipe.yaml",
        "environment.json", "report.html", "predictions",
    }  # fmt: skip
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    for line, row in zip(map(json.loads, lines), result.rows, strict=True):
        assert line == {**row, "digest": line["digest"]}
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_the_same_command_again_repeats_nothing(
    table_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(table_recipe, tmp_path / "run")
    before = (tmp_path / "run" / "results.jsonl").read_bytes()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished trial ran again")

    monkeypatch.setattr(trial_module, "predict", never)
    again = run(table_recipe, tmp_path / "run")
    assert again.rows == first.rows
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == before


def test_a_crash_loses_only_the_trial_at_hand(table_recipe: Recipe, tmp_path: Path) -> None:
    complete = run(table_recipe, tmp_path / "complete").rows
    run(table_recipe, tmp_path / "run")
    rows = tmp_path / "run" / "results.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(lines[0] + lines[1] + lines[2][:40])  # killed while writing the last row
    heard = Heard()
    again = run(table_recipe, tmp_path / "run", heard)
    assert heard.counts == [(2, 3), (3, 3)]
    assert any("cut short" in note for note in heard.notes)
    for row, same in zip(again.rows, complete, strict=True):
        assert {**row, "seconds": 0} == {**same, "seconds": 0}


def test_a_longer_grid_keeps_the_finished_rows(
    table_recipe: Recipe, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run(table_recipe, tmp_path / "run")
    longer = table_recipe.replace(grid=({"prune.sparsity": (0, 0.3, 0.6, 0.9)},))
    heard = Heard()
    result = run(longer, tmp_path / "run", heard)
    assert heard.counts[0] == (3, 4)
    assert [row["requested_sparsity"] for row in result.rows] == [0, 0.3, 0.6, 0.9]


def test_another_recipe_is_kept_out(table_recipe: Recipe, tmp_path: Path) -> None:
    run(table_recipe, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(OutputError, match="contains results of another recipe"):
        run(table_recipe.replace(seed=1), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_training_is_shared_and_kept(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    heard = Heard()
    result = run(make_recipe(), tmp_path / "one", heard)
    assert any(note.startswith("prune touches 12 layers, 16,384 weights: ") for note in heard.notes)
    assert sum("fine-tuning" in stage for stage in heard.stages) == 1
    assert len({row["weights_hash"] for row in result.rows}) == 3  # both 0 % rows are one model
    again = Heard()
    other = run(make_recipe(measure={"metric": "f1"}), tmp_path / "two", again)
    assert not any("fine-tuning" in stage for stage in again.stages)
    assert any("kept from an earlier run" in note for note in again.notes)
    hashes = [[row["weights_hash"] for row in done.rows] for done in (result, other)]
    assert hashes[0] == hashes[1]


def test_seeds_vary_training(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(steps=[{"finetune": {"max_steps": 2}}], grid={"seed": [1, 2]})
    rows = run(recipe).rows
    assert rows[0]["weights_hash"] != rows[1]["weights_hash"]
    assert run(recipe).rows[0]["weights_hash"] == rows[0]["weights_hash"]


def test_finetuning_learns_and_every_field_changes_it(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfcompress.steps.training.slow_bf16", lambda: None)

    def train(**fields: Any) -> dict[str, Any]:
        step = {"epochs": 3, "learning_rate": 1e-2, "batch_size": 8, **fields}
        row: dict[str, Any] = run(make_recipe(steps=[{"finetune": step}], grid={})).rows[0]
        return row

    assert train(epochs=8)["value"] > 0.9
    base = train()
    for change in (
        {"epochs": 2}, {"max_steps": 3}, {"batch_size": 4}, {"learning_rate": 1e-3},
        {"schedule": "constant"}, {"warmup": 0.5}, {"weight_decay": 0.5},
        {"label_smoothing": 0.3}, {"bf16": True},
    ):  # fmt: skip
        assert train(**change)["weights_hash"] != base["weights_hash"], change


def test_models_are_kept_where_asked(table_recipe: Recipe, tmp_path: Path) -> None:
    result = run(table_recipe.replace(save_models=True), tmp_path / "run")
    folders = sorted((tmp_path / "run" / "models").iterdir())
    assert len(folders) == 3
    model = AutoModelForSequenceClassification.from_pretrained(folders[2])
    names = [layer["name"] for layer in result.rows[2]["layers"]]
    assert calculate_sparsity(model, names).targets == result.rows[2]["actual_sparsity"]


def test_the_last_rows_write_as_much_as_the_first(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    written = os.fsync

    def counted(file: int) -> None:
        sizes[-1] += os.fstat(file).st_size - before.get(os.readlink(f"/proc/self/fd/{file}"), 0)
        before[os.readlink(f"/proc/self/fd/{file}")] = os.fstat(file).st_size
        written(file)

    class PerRow(Progress):
        def row(self, row: dict[str, Any]) -> None:
            sizes.append(0)

    before: dict[str, int] = {}
    sizes.append(0)
    monkeypatch.setattr(os, "fsync", counted)
    grid = {"prune.sparsity": [place / 20 for place in range(12)]}
    plan = make_recipe(steps=[{"prune": {}}], grid=grid, measure={"macs": False})
    run(plan, tmp_path / "run", PerRow(), draw=False)
    early, late = sizes[1:4], sizes[9:12]  # the first also writes what the trials share
    assert sum(late) < 1.5 * sum(early)


@pytest.mark.usefixtures("drawn_pictures")
def test_report_is_drawn_again_from_rows_alone(table_recipe: Recipe, tmp_path: Path) -> None:
    result = run(table_recipe, tmp_path / "run")
    for name in ("curve.png", "results.csv", "report.html"):
        (tmp_path / "run" / name).unlink()
    assert report(tmp_path / "run") == result.rows
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000
    with pytest.raises(OutputError, match=r"contains no results\.jsonl"):
        report(tmp_path)


@pytest.mark.usefixtures("drawn_pictures")
def test_sensitivity_prunes_one_layer_at_a_time(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(
        steps=[{"prune": {"targets": ["query", "classifier"]}}],
        grid={"prune.sparsity": [0.5, 0.9]},
    )
    result = run_sensitivity(recipe, tmp_path / "run")
    assert len(result.rows) == 3 * 2
    for row in result.rows:
        (layer,) = row["settings"]["prune.targets"]
        assert [part["name"] for part in row["layers"]] == [layer]
        assert row["model_sparsity"] < 0.2
    assert (tmp_path / "run" / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"take prune\.scope out of the grid"):
        run_sensitivity(make_recipe(steps=recipe.steps), tmp_path / "other")
    with pytest.raises(ConfigError, match="whose last step, and no other, is prune"):
        run_sensitivity(make_recipe(steps=[{"finetune": {}}], grid={}), tmp_path / "other")


def test_lines_are_named_by_what_varies(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(
        steps=[{"prune": {}}],
        grid=[
            {"prune.scope": ["layer", "global"], "prune.sparsity": [0.5], "seed": [0, 1]},
            {
                "prune.method": ["random"],
                "prune.sparsegpt.damping": [0.5],
                "prune.sparsity": [0.5, 0.6],
            },
        ],
    )
    trials = expand(recipe)
    labels = [line_label(trial, trials) for trial in trials]
    assert labels == ["magnitude, layer"] * 2 + ["magnitude, global"] * 2 + ["random"] * 2


def test_precision_decides_how_rows_are_predicted(
    make_recipe: Callable[..., Recipe],
    write_data: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    data = {"path": str(write_data(rows=600)), "eval_fraction": 0.5}
    found = {
        precision: run(make_recipe(data=data, measure={"precision": precision})).rows
        for precision in ("auto", "fp32")
    }
    for checked, exact in zip(found["auto"], found["fp32"], strict=True):
        assert checked["value"] == exact["value"]
        assert checked["agreement"] == exact["agreement"]
        assert checked["fp32_rows"] < exact["fp32_rows"] == 300


def test_rows_to_choose_on_are_measured_apart(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe()
    plain = run(recipe, tmp_path / "plain")
    data = recipe.data.replace(choose=0.4)
    result = run(recipe.replace(data=data), tmp_path / "out")
    assert "choice" not in plain.rows[0]
    for row in result.rows:
        assert (row["n"], row["choice"]["n"]) == (30, 12)
        assert row["choice"]["metric"] == row["metric"]
    dense = next(row for row in result.rows if not row["requested_sparsity"])
    assert dense["choice"]["drop"] == 0
    assert dense["choice"]["agreement"] == 1
