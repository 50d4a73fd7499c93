"""Worker processes and Ray give the rows that one process gives."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcompress.errors import ConfigError, HfcompressError, MissingExtraError
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.schema import Recipe, expand, parse_recipe
from hfcompress.sweep import executors as engines
from hfcompress.sweep.outcome import Outcome
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import run
from tests.forked import fork_workers

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
    assert set(store.weights()) == set(RunDirectory(tmp_path / "alone").weights())
    assert all(store.load_predictions(row["hash"]) is not None for row in together.rows)


@pytest.mark.usefixtures("as_a_worker")
def test_shared_training_runs_once_and_before_the_workers(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def run_tasks(tasks: list[engines.Task], *_: Any) -> Any:
        cache = Path(next(iter(tasks)).cache)
        seen.append(len(list((cache / "steps").iterdir())))
        return iter([engines.perform_task(task) for task in tasks])

    monkeypatch.setattr(engines, "_in_processes", run_tasks)
    assert len(run(recipe, workers=2).rows) == 3
    assert seen == [1]


def dies_at_half(task: engines.Task) -> Outcome:
    """In the place of `perform_task` in a worker: the second trial kills its process."""
    if task.trial_index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome({}, f"row {task.trial_index}")


def test_a_dead_worker_fails_its_own_trial_alone(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_workers(monkeypatch)
    monkeypatch.setattr(engines, "perform_task", dies_at_half)
    trials = expand(recipe)
    tasks = {engines.Task("", None, "", 1, False, trial.index): trial for trial in trials}
    outcomes = sorted(engines._in_processes(tasks, 2, 1), key=lambda one: one.row_hash)
    assert [outcome.row_hash for outcome in outcomes] == ["", "row 0", "row 2"]
    assert "fewer workers" in outcomes[0].reason
    assert outcomes[0].settings == trials[1].settings


def test_a_worker_that_cannot_be_prepared_is_a_failed_trial() -> None:
    future: Future[Any] = Future()
    future.set_exception(KeyError("gone"))
    outcome = engines._result(future, Trial(0, {"prune.sparsity": 0.5}, 0, (), (), "hash"))
    assert outcome is not None
    assert outcome.row is None
    assert outcome.reason == "KeyError: 'gone'"
    assert outcome.settings == {"prune.sparsity": 0.5}


WITH_CHILDREN = """
import os, signal, subprocess, sys, time
from hfcompress.sweep.processes import worker_pool

def work(seconds):
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
    print(os.getpid(), child.pid, flush=True)
    time.sleep(seconds)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with worker_pool(2) as pool:
        for future in [pool.submit(work, 600) for _ in range(2)]:
            future.result()
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_and_their_children_end_with_the_parent(
    tmp_path: Path, number: signal.Signals
) -> None:
    script = tmp_path / "script.py"
    script.write_text(WITH_CHILDREN)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for _ in range(2) for word in parent.stdout.readline().split()]
        assert len(pids) == 4
        assert all(map(is_alive, pids))
        parent.send_signal(number)
        try:
            parent.wait(30)
        finally:
            parent.kill()
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in pids if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_shared_training_that_fails_fails_its_trials_once(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("oddity")

    monkeypatch.setattr("hfcompress.sweep.trial.run_step", fails)
    monkeypatch.setattr(engines, "_in_processes", fails)
    result = run(recipe, workers=2)
    assert [reason for _, reason in result.failures] == ["ValueError: oddity"] * 3


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


def dies_once(task: engines.Task) -> Outcome:
    """In the place of `perform_task`: the first try of the second trial kills its process."""
    assert task.folder is not None
    tried = Path(task.folder) / "tried"
    if task.trial_index == 1 and not tried.exists():
        tried.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome({}, f"row {task.trial_index}")


def test_the_trial_of_a_dead_worker_is_tried_once_more(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_workers(monkeypatch)
    monkeypatch.setattr(engines, "perform_task", dies_once)
    trials = expand(recipe.replace(grid={"prune.sparsity": [i / 10 for i in range(8)]}))
    tasks = {engines.Task("", str(tmp_path), "", 1, False, one.index): one for one in trials}
    outcomes = [outcome.row_hash for outcome in engines._in_processes(tasks, 2, 1)]
    assert sorted(outcomes) == [f"row {index}" for index in range(8)]


def test_a_machine_without_room_for_workers_says_so(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hfcompress.sweep.processes.ProcessPoolExecutor", full)
    with pytest.raises(HfcompressError, match=r"No space left on device\); use --workers 1"):
        run(recipe, workers=2)
