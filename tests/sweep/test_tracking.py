"""Rows and losses in trackers: what was logged is read again from the run's folder."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfcompress.errors import ConfigError, MissingExtraError
from hfcompress.recipes.schema import Recipe
from hfcompress.report.csv_table import flat_row
from hfcompress.sweep.run import run
from hfcompress.sweep.tracking import track_row
from hfcompress.utils import Row

ROW: Row = {
    "hash": "0123456789abcdef", "index": 3, "seed": 1, "metric": "accuracy", "value": 0.75,
    "settings": {"prune.sparsity": 0.5, "prune.targets": ["a", "b"]}, "steps": [],
    "other_metrics": {"f1": 0.5}, "timed": True, "nothing": None,
}  # fmt: skip
FAILED: Row = {
    "hash": "fedcba9876543210", "index": 4, "seed": 1, "settings": {"prune.sparsity": 0.9},
    "steps": [], "status": "failed", "reason": "no room",
}  # fmt: skip


def needs(name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")


def log(name: Any, row: Row, folder: Path) -> list[str]:
    notes: list[str] = []
    track_row([name], "sweep", row, folder, notes.append)
    return notes


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_settings_and_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert log("tensorboard", ROW, tmp_path) == []
    folder = tmp_path / "logs" / "tensorboard" / "003-01234567"
    events = EventAccumulator(str(folder))
    events.Reload()
    values = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert values == {"index": 3.0, "value": 0.75, "other_metrics.f1": 0.5, "timed": 1.0}
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"settings.prune.sparsity" in plugin


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_a_run_for_each_trial(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    assert log("mlflow", ROW, tmp_path) == log("mlflow", FAILED, tmp_path) == []
    client = MlflowClient(f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    [experiment] = [item for item in client.search_experiments() if item.name == "sweep"]
    found = {item.info.run_name: item for item in client.search_runs([experiment.experiment_id])}
    good, bad = found["003-01234567"], found["004-fedcba98"]
    assert good.data.metrics["other_metrics.f1"] == 0.5
    assert good.data.params["settings.prune.targets"] == "['a', 'b']"
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert bad.data.tags["reason"] == "no room"


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_an_offline_run(tmp_path: Path) -> None:
    assert log("wandb", ROW, tmp_path) == []
    [kept] = (tmp_path / "logs" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"other_metrics.f1" in kept.read_bytes()


@needs("trackio")
@pytest.mark.skipif("trackio" in sys.modules, reason="trackio reads its folder once")
@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_its_project_in_the_folder(tmp_path: Path) -> None:
    assert log("trackio", ROW, tmp_path) == []
    [kept] = (tmp_path / "logs" / "trackio").glob("sweep*.db")
    assert kept.stat().st_size > 0


def test_a_tracker_that_fails_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise OSError("server away\nand more")

    monkeypatch.setitem(sys.modules["hfcompress.sweep.tracking"]._LOG, "wandb", broken)
    assert log("wandb", ROW, tmp_path) == ["wandb has not logged a trial: server away"]


def test_the_keys_are_those_of_the_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setitem(sys.modules["hfcompress.sweep.tracking"]._LOG, "mlflow", found.append)
    log("mlflow", ROW, tmp_path)
    [trial] = found
    logged = {*trial.settings, *trial.values, *trial.texts}
    assert logged == ({*flat_row(ROW)} - {"nothing"}) | {"settings.prune.targets"}
    assert (trial.project, trial.name) == ("sweep", "003-01234567")


def recipe(model_folder: Path, write_data: Callable[..., Path], **more: Any) -> Recipe:
    data = {"train": write_data("rows/train.tsv", 40), "eval": write_data("rows/dev.tsv", 20)}
    return Recipe.from_dict({
        "model": str(model_folder), "data": {"path": str(data["train"].parent)},
        "steps": [{"finetune": {"max_steps": 4, "batch_size": 4, **more.pop("finetune", {})}},
                  {"prune": {"method": "magnitude"}}],
        "grid": {"prune.sparsity": [0.3, 0.5]}, **more,
    })  # fmt: skip


def test_each_row_of_a_sweep_is_logged_once(
    model_folder: Path, write_data: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found: list[Any] = []
    monkeypatch.setitem(sys.modules["hfcompress.sweep.tracking"]._LOG, "tensorboard", found.append)
    monkeypatch.setattr("hfcompress.training.tracking.check_installed", lambda *_: None)
    plan = recipe(model_folder, write_data, track="tensorboard")
    assert plan.track == ("tensorboard",)
    for _ in range(2):  # the second one finds all rows
        rows = run(plan, tmp_path / "run", draw=False).rows
    assert [trial.settings["settings.prune.sparsity"] for trial in found] == [0.3, 0.5]
    assert [trial.values["value"] for trial in found] == [row["value"] for row in rows]


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_losses_of_a_training_stay_in_the_folder(
    model_folder: Path, write_data: Callable[..., Path], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = recipe(model_folder, write_data, finetune={"track": "tensorboard"})
    run(plan, tmp_path / "run", draw=False)
    [folder] = (tmp_path / "run" / "logs" / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_a_tracked_run_needs_its_package_and_a_folder(
    model_folder: Path, write_data: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", None)
    for plan in (
        recipe(model_folder, write_data, track=["wandb"]),
        recipe(model_folder, write_data, finetune={"track": "wandb"}),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'hfcompress\[wandb\]'"):
            run(plan, tmp_path / "run")
    monkeypatch.setattr("hfcompress.training.tracking.check_installed", lambda *_: None)
    with pytest.raises(ConfigError, match="track keeps its logs in the run's folder; give output"):
        run(plan)
    assert json.dumps(plan.to_dict())
    assert not (tmp_path / "run").exists()
