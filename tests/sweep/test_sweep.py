"""A sweep end to end on a tiny model: rows, files, resuming, sharing."""

from __future__ import annotations

import csv
import html
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from hfcompress import inference as predict_module
from hfcompress.errors import (
    BadInputError,
    CalibrationError,
    ConfigError,
    DataError,
    ModelError,
    OutputError,
    TargetError,
)
from hfcompress.measure.size import calculate_sparsity
from hfcompress.recipes.schema import Recipe, expand, parse_recipe
from hfcompress.sweep import trial as trial_module
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import report, run
from hfcompress.sweep.sensitivity import sensitivity
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


@pytest.fixture
def make_recipe(model_folder: Path, write_data: Callable[..., Path]) -> Callable[..., Recipe]:
    path = write_data(rows=60)

    def make(**changes: Any) -> Recipe:
        data = {
            "name": "tiny",
            "model": str(model_folder),
            "data": {"path": str(path), "eval_fraction": 0.5},
            "steps": [{"finetune": {"max_steps": 3, "learning_rate": 1e-2}}, {"prune": {}}],
            "grid": {"prune.sparsity": [0, 0.5], "prune.scope": ["layer", "global"]},
        }
        return parse_recipe({**data, **changes})

    return make


@pytest.fixture
def table_recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    """No training: the table's protocol on any classifier."""
    return make_recipe(
        steps=[{"prune": {"targets": ["Linear"]}}],
        grid={"prune.sparsity": [0, 0.3, 0.9]},
        reference={"source": "published", "values": {0: 0.9, 0.3: 0.8}, "notes": {0.3: "hello"}},
        measure={"also": ["f1"], "batch_size": 7},
    )


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


def test_files_of_a_run(table_recipe: Recipe, tmp_path: Path) -> None:
    result = run(table_recipe, tmp_path / "run")
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written >= {
        "results.jsonl", "results.csv", "curve.png", "weights.png", "recipe.yaml",
        "environment.json", "report.html", "predictions",
    }  # fmt: skip
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.rows
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


def test_finetuning_learns_and_every_field_changes_it(make_recipe: Callable[..., Recipe]) -> None:
    def train(**fields: Any) -> dict[str, Any]:
        step = {"epochs": 8, "learning_rate": 1e-2, "batch_size": 8, **fields}
        row: dict[str, Any] = run(make_recipe(steps=[{"finetune": step}], grid={})).rows[0]
        return row

    base = train()
    assert base["value"] > 0.9
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


def test_one_trial_that_fails_does_not_stop_the_others(
    table_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = predict_module.predict
    calls = []

    def sometimes(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return predict(*arguments, **named)

    monkeypatch.setattr(trial_module, "predict", sometimes)
    result = run(table_recipe, tmp_path / "run")
    assert [reason for _, reason in result.failures] == ["out of memory"]
    assert len(result.rows) == 2
    assert len(run(table_recipe, tmp_path / "run").rows) == 3


def breaks_second(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the second prediction of this process raise."""
    predict, calls = predict_module.predict, []

    def sometimes(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return predict(*arguments, **named)

    monkeypatch.setattr(trial_module, "predict", sometimes)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("oddity"), "ValueError: oddity"),
        (KeyError("oddity"), "KeyError: 'oddity'"),
        (MemoryError(), "MemoryError"),
        (RecursionError("=too deep"), "RecursionError: =too deep"),
        (SystemExit(3), "SystemExit: 3"),
        (ModelError("cannot be"), "cannot be"),
    ],
)
def test_a_failed_trial_is_a_row_with_its_reason(
    error: BaseException, reason: str, table_recipe: Recipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    breaks_second(monkeypatch, error)
    result = run(table_recipe, tmp_path / "run")
    assert result.failures == [({"prune.sparsity": 0.3}, reason)]
    assert [row["requested_sparsity"] for row in result] == [0, 0.9]
    (failed,) = RunDirectory(tmp_path / "run").failures()
    assert (failed["status"], failed["reason"], failed["index"]) == ("failed", reason, 1)
    assert "Traceback" in failed["trace"]
    with (tmp_path / "run" / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["status"] for row in rows] == ["", "failed", ""]
    assert rows[1]["reason"] == reason
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 of 3 trials failed" in page
    assert html.unescape(page).count(reason) == 1


def test_failed_trials_are_run_again_where_asked(
    table_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_second(monkeypatch, ValueError("oddity"))
    run(table_recipe, tmp_path / "run")
    heard = Heard()
    again = run(table_recipe, tmp_path / "run", heard, retry_failed=False)
    assert again.failures == [({"prune.sparsity": 0.3}, "ValueError: oddity")]
    assert "1 trials failed in an earlier run and are not tried again" in heard.notes
    last = run(table_recipe, tmp_path / "run", retry_failed=True)
    assert [row["requested_sparsity"] for row in last] == [0, 0.3, 0.9]
    assert not last.failures
    assert "failed" not in (tmp_path / "run" / "results.csv").read_text()
    assert "trials failed" not in (tmp_path / "run" / "report.html").read_text()


def test_fail_fast_begins_no_trial_after_one_that_failed(
    table_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_second(monkeypatch, ValueError("oddity"))
    result = run(table_recipe, tmp_path / "run", fail_fast=True)
    assert (len(result), len(result.failures)) == (1, 1)
    assert len(run(table_recipe, tmp_path / "run", retry_failed=False)) == 2


def test_an_interrupt_is_no_failure(
    table_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_second(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(table_recipe, tmp_path / "run")
    assert len(RunDirectory(tmp_path / "run").rows()) == 1
    assert RunDirectory(tmp_path / "run").failures() == []
    assert len(run(table_recipe, tmp_path / "run")) == 3


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


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"data": {"path": "no/such/file.tsv"}}, BadInputError),
        ({"model": "no/such/folder/at/all"}, BadInputError),
        (
            {"steps": [{"prune": {"sparsity": 0.5, "targets": ["nothing*"]}}], "grid": {}},
            TargetError,
        ),
        ({"measure": {"metric": "no_such_metric"}}, BadInputError),
    ],
)
def test_bad_input_writes_nothing(
    changes: dict[str, Any],
    error: type[Exception],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    with pytest.raises(error) as caught:
        run(make_recipe(**changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_untrained_head_is_refused(
    make_recipe: Callable[..., Recipe], write_data: Callable[..., Path]
) -> None:
    path = write_data("three.tsv")
    path.write_text("sentence\tlabel\n" + "\n".join(f"film\t{index % 3}" for index in range(9)))
    steps = [{"prune": {"sparsity": 0.5}}]
    with pytest.raises(ModelError, match="no trained classification head"):
        run(make_recipe(data=str(path), steps=steps, grid={}))


def test_training_needs_rows(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    path = tmp_path / "two.csv"
    path.write_text("text,label\na,0\n")
    with pytest.raises(DataError):
        run(make_recipe(data=str(path)))


def test_report_is_drawn_again_from_rows_alone(table_recipe: Recipe, tmp_path: Path) -> None:
    result = run(table_recipe, tmp_path / "run")
    for name in ("curve.png", "results.csv", "report.html"):
        (tmp_path / "run" / name).unlink()
    assert report(tmp_path / "run") == result.rows
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000
    with pytest.raises(OutputError, match=r"contains no results\.jsonl"):
        report(tmp_path)


def test_sensitivity_prunes_one_layer_at_a_time(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(
        steps=[{"prune": {"targets": ["query", "classifier"]}}],
        grid={"prune.sparsity": [0.5, 0.9]},
    )
    result = sensitivity(recipe, tmp_path / "run")
    assert len(result.rows) == 3 * 2
    for row in result.rows:
        (layer,) = row["settings"]["prune.targets"]
        assert [part["name"] for part in row["layers"]] == [layer]
        assert row["model_sparsity"] < 0.2
    assert (tmp_path / "run" / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"take prune\.scope out of the grid"):
        sensitivity(make_recipe(steps=recipe.steps), tmp_path / "other")
    with pytest.raises(ConfigError, match="whose last step, and no other, is prune"):
        sensitivity(make_recipe(steps=[{"finetune": {}}], grid={}), tmp_path / "other")


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


EVIL = """
from pathlib import Path
Path(__file__).with_name("RAN").touch()
"""


@pytest.mark.parametrize("measure", [{"metric": "{}"}, {"also": ["{}"]}])
@pytest.mark.parametrize("spelling", ["./evil", "evil", "evil/evil.py", "{}/evil"])
def test_a_recipe_runs_no_metric_script(
    measure: dict[str, Any], spelling: str, make_recipe: Callable[..., Recipe], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    name = spelling.format(tmp_path)
    filled = {key: name if isinstance(value, str) else [name] for key, value in measure.items()}
    with pytest.raises(ConfigError, match="is not built in"):
        run(make_recipe(measure=filled))
    with pytest.raises(ConfigError, match="is not built in"):  # the caller's word is not enough
        run(make_recipe(measure=filled), trust_remote_code=True)
    with pytest.raises(ConfigError, match=r"measure\.trust_remote_code: true runs code"):
        run(make_recipe(measure={**filled, "trust_remote_code": True}))  # nor is the recipe's
    assert not list(tmp_path.rglob("RAN"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"path": "org/model", "trust_remote_code": True}},
        {"steps": [{"distill": {"model": {"path": "org/model", "trust_remote_code": True}}}],
         "grid": {}},
    ],
)  # fmt: skip
def test_a_recipe_that_asks_to_run_code_needs_the_callers_word(
    changes: dict[str, Any], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(**changes)
    with pytest.raises(ConfigError, match="allow it: --trust-remote-code"):
        run(recipe, tmp_path / "out")
    with pytest.raises(ConfigError, match="allow it: --trust-remote-code"):
        sensitivity(recipe, tmp_path / "out")


@pytest.mark.parametrize(
    "step",
    [
        {"prune": {"method": "wanda", "sparsity": 0.5, "calibration_rows": 31}},
        {"quantize": {"backend": "onnxruntime", "mode": "static", "calibration_rows": 31}},
        {"distill": {"student": {"layers": 1, "init": "importance", "calibration_rows": 31}}},
        {"progressive": {"prune": {"method": "wanda", "sparsity": 0.5, "calibration_rows": 28},
                         "sparsity": 0.5}},
    ],
)  # fmt: skip
def test_calibration_rows_are_checked_before_training(
    step: dict[str, Any], make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a step ran")

    monkeypatch.setattr(trial_module, "run_step", never)
    (name,) = step
    with pytest.raises(
        CalibrationError, match=rf"^{name}\..*calibration_rows is \d+ and the train"
    ):
        run(make_recipe(steps=[{"finetune": {"max_steps": 1}}, step], grid={}))


def test_default_calibration_takes_the_rows_that_there_are(
    make_recipe: Callable[..., Recipe],
) -> None:
    heard = Heard()
    steps = [{"quantize": {"backend": "onnxruntime", "mode": "static"}}]
    assert len(run(make_recipe(steps=steps, grid={}), progress=heard)) == 1
    assert "quantize calibrates on all 30 training rows" in heard.notes


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
