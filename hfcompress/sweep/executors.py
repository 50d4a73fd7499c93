"""Where trials run: in this process, in worker processes, or on a Ray cluster.

An engine gives the outcomes as they come, in any order. Only the process that asks writes to the
run's folder (but for saved models, which have a folder each), so that its rows stay whole.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from hfcompress.errors import ConfigError
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import Experiment, prepare
from hfcompress.sweep.outcome import Outcome, perform
from hfcompress.sweep.trial import Runner
from hfcompress.utils import Fields, Progress, quiet_libraries, require

EngineName = Literal["process", "ray"]


class Task(NamedTuple):
    """One trial as a worker is told of it: plain values, which any process can read."""

    recipe: str
    folder: str | None
    cache: str
    threads: int
    trusted: bool
    trial_index: int


def in_process(runner: Runner, folder: Path | None) -> Iterator[Outcome]:
    """One pending trial after the other, each prefix that they share computed once."""
    for trial in runner.pending:
        yield perform(runner, trial, folder)
        runner.release(trial)


def in_workers(
    experiment: Experiment,
    pending: list[Trial],
    folder: Path | None,
    workers: int,
    engine: EngineName,
) -> Iterator[Outcome]:
    """Trials side by side; each worker loads model and data once.

    Training steps that several trials share run here first, so that no worker repeats them.

    Args:
        experiment: what the trials share.
        pending: which trials.
        folder: the run's folder; None for none.
        workers: how many at a time; the cores are divided among them.
        engine: ``process`` for worker processes of this machine, ``ray`` for a Ray cluster (a
            local one is started where none is connected; its machines must see the same files).

    Raises:
        ConfigError: fewer than one worker, or an unknown engine.
        MissingExtraError: Ray is not installed.
    """
    if workers < 1 or engine not in get_args(EngineName):
        raise ConfigError(
            f"workers must be 1 or more and engine one of {', '.join(get_args(EngineName))}, "
            f"not {workers} and {engine!r}"
        )
    run_tasks = _on_ray if engine == "ray" else _in_processes
    if engine == "ray":
        require("ray", "ray")
    _train_shared(experiment, pending)
    recipe = json.dumps(experiment.recipe.to_dict())
    threads = max(1, (os.cpu_count() or 1) // workers)
    place = None if folder is None else str(folder)
    cache, trusted = str(experiment.cache.root), experiment.trusted
    tasks = [Task(recipe, place, cache, threads, trusted, trial.index) for trial in pending]
    settings = {trial.index: trial.settings for trial in pending}
    yield from run_tasks(tasks, settings, min(workers, len(tasks)), threads)


def _train_shared(experiment: Experiment, pending: list[Trial]) -> None:
    runner = Runner(experiment, pending)
    done: set[str] = set()
    for trial in pending:
        prefixes = trial.prefixes
        for place, step in enumerate(trial.steps, 1):
            shared = sum(prefixes[place] in other.prefixes for other in pending) > 1
            if step.config.trains and shared and prefixes[place] not in done:
                done.add(prefixes[place])
                runner.state_after(trial, place)


def perform_task(task: Task) -> Outcome:
    """Carry out one trial of a recipe in a worker."""
    runner = _runner(task.recipe, task.cache, task.threads, task.trusted)
    trial = runner.experiment.trials[task.trial_index]
    return perform(runner, trial, None if task.folder is None else Path(task.folder))


@functools.cache
def _runner(recipe: str, cache: str, threads: int, trusted: bool) -> Runner:
    """A worker's own, prepared at its first trial and kept for the next ones."""
    quiet_libraries()
    torch.set_num_threads(threads)
    plan, kept = parse_recipe(json.loads(recipe)), StepCache(Path(cache))
    experiment = prepare(plan, Progress(), kept, trust_remote_code=trusted)
    return Runner(experiment, experiment.trials)


def _in_processes(
    tasks: list[Task], settings: dict[int, Fields], workers: int, threads: int
) -> Iterator[Outcome]:
    # Spawned: a forked process inherits the state of torch's thread pool, and hangs on it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures: dict[Future[Outcome], int] = {
            pool.submit(perform_task, task): task.trial_index for task in tasks
        }
        try:
            for future in as_completed(futures):
                yield _result(future, settings[futures[future]])
        finally:
            for future in futures:
                future.cancel()


def _result(future: Future[Outcome], settings: Fields) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        return Outcome(
            settings, reason="its worker process died, out of memory perhaps; use fewer workers"
        )


def _on_ray(
    tasks: list[Task], settings: dict[int, Fields], workers: int, threads: int
) -> Iterator[Outcome]:
    ray: Any = require("ray", "ray")

    started = not ray.is_initialized()
    if started:
        ray.init(
            num_cpus=workers * threads, include_dashboard=False, log_to_driver=False,
            configure_logging=False,
        )  # fmt: skip
    try:
        remote = ray.remote(num_cpus=threads, max_retries=0)(perform_task)
        waiting = {remote.remote(task): task.trial_index for task in tasks}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            index = waiting.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()
                yield Outcome(settings[index], reason=reason[-1] if reason else "Ray failed")
    finally:
        if started:
            ray.shutdown()
