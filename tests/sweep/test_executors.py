"""Worker processes and Ray give the rows that one process gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcompress.errors import ConfigError, MissingExtraError
from hfcompress.recipes.schema import Recipe, parse_recipe
from hfcompress.sweep import executors as engines
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import run

TIMES = {"seconds", "steps"}


@pytest.fixture
def recipe(model_folder: Path, write_data: Callable[..., Path]) -> Recipe:
    return parse_recipe(
        {
            "model": str(model_folder),
            "data": {"path": str(write_data(rows=60)), "eval_fraction": 0.5},
            "steps": [{"finetune": {"max_steps": 3, "learning_rate": 1e-2}}, {"prune": {}}],
            "grid": {"prune.sparsity": [0, 0.5, 0.8]},
        }
    )


@pytest.fixture
def as_a_worker() -> Iterator[None]:
    """A test that plays the worker leaves neither its threads nor its runner behind."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    engines._runner.cache_clear()


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_two_processes_give_the_rows_of_one(recipe: Recipe, tmp_path: Path) -> None:
    alone = run(recipe, tmp_path / "alone")
    together = run(recipe.replace(save_models=True), tmp_path / "together", workers=2)
    assert not together.failures
    assert without_times(together.rows) == without_times(alone.rows)
    store = RunDirectory(tmp_path / "together")
    assert len(list((store.path / "models").iterdir())) == 3
    assert set(store.read_json("weights.json")) == set(
        RunDirectory(tmp_path / "alone").read_json("weights.json")
    )
    assert all(store.load_predictions(row["hash"]) is not None for row in together.rows)


@pytest.mark.usefixtures("as_a_worker")
def test_shared_training_runs_once_and_before_the_workers(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def run_tasks(tasks: list[engines.Task], *_: Any) -> Any:
        cache = Path(tasks[0][2])
        seen.append(len(list((cache / "steps").iterdir())))
        return iter([engines.perform_task(task) for task in tasks])

    monkeypatch.setattr(engines, "_in_processes", run_tasks)
    assert len(run(recipe, workers=2).rows) == 3
    assert seen == [1]


def test_a_dead_worker_is_a_failed_trial() -> None:
    future: Future[Any] = Future()
    future.set_exception(BrokenProcessPool("gone"))
    outcome = engines._result(future, {"prune.sparsity": 0.5})
    assert outcome.row is None
    assert "fewer workers" in outcome.reason
    assert outcome.settings == {"prune.sparsity": 0.5}


def test_refusals(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="workers must be 1 or more"):
        run(recipe, workers=0)
    with pytest.raises(ConfigError, match="engine one of process, ray"):
        run(recipe, engine="slurm")  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_missing_says_how_to_get_it(recipe: Recipe) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'hfcompress\[ray\]'"):
        run(recipe, workers=2, engine="ray")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_gives_the_rows_of_one_process(recipe: Recipe) -> None:
    assert without_times(run(recipe, workers=2, engine="ray").rows) == without_times(
        run(recipe).rows
    )
