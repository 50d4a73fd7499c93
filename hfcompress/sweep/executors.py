"""Where trials run: in this process, in worker processes, or on a Ray cluster.

An engine gives the outcomes as they come, in any order. Only the process that asks writes to the
run's folder (but for saved models, which have a folder each), so that its rows stay whole.
"""

from __future__ import annotations

import functools
import json
import os
from collections import Counter, deque
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from hfcompress.errors import ConfigError, HfcompressError
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import Experiment, prepare
from hfcompress.sweep.outcome import INTERRUPTS, Outcome, failed, perform
from hfcompress.sweep.processes import worker_pool
from hfcompress.sweep.trial import Runner
from hfcompress.utils import Progress, quiet_libraries, require

EngineName = Literal["process", "ray"]
Outcomes = Generator[Outcome, None, None]


class Task(NamedTuple):
    """One trial as a worker is told of it: plain values, which any process can read."""

    recipe: str
    folder: str | None
    cache: str
    threads: int
    trusted: bool
    trial_index: int


def in_process(runner: Runner, folder: Path | None) -> Outcomes:
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
) -> Outcomes:
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
    errors = _train_shared(experiment, pending)
    recipe = json.dumps(experiment.recipe.to_dict())
    threads = max(1, (os.cpu_count() or 1) // workers)
    place = None if folder is None else str(folder)
    cache, trusted = str(experiment.cache.root), experiment.trusted
    tasks = {}
    for trial in pending:
        error = next((errors[key] for key in trial.prefixes if key in errors), None)
        if error is None:
            tasks[Task(recipe, place, cache, threads, trusted, trial.index)] = trial
        else:
            yield failed(trial, error)
    if tasks:
        yield from run_tasks(tasks, min(workers, len(tasks)), threads)


def _train_shared(experiment: Experiment, pending: list[Trial]) -> dict[str, BaseException]:
    """Carry out training steps that several trials share; what was raised, by prefix."""
    runner, errors = Runner(experiment, pending), dict[str, BaseException]()
    uses = Counter(prefix for trial in pending for prefix in set(trial.prefixes))
    done: set[str] = set()
    for trial in pending:
        for place, step in enumerate(trial.steps, 1):
            prefix = trial.prefixes[place]
            if step.config.trains and uses[prefix] > 1 and prefix not in done:
                done.add(prefix)
                try:
                    runner.state_after(trial, place)
                except INTERRUPTS:
                    raise
                except BaseException as error:  # each trial that needs it fails by itself
                    errors[prefix] = error
                    break
    return errors


def perform_task(task: Task) -> Outcome:
    """Carry out one trial of a recipe in a worker."""
    runner = _runner(task.recipe, task.cache, task.threads, task.trusted, task.folder)
    trial = runner.experiment.trials[task.trial_index]
    return perform(runner, trial, None if task.folder is None else Path(task.folder))


@functools.cache
def _runner(recipe: str, cache: str, threads: int, trusted: bool, folder: str | None) -> Runner:
    """A worker's own, prepared at its first trial and kept for the next ones."""
    quiet_libraries()
    torch.set_num_threads(threads)
    plan, kept = parse_recipe(json.loads(recipe)), StepCache(Path(cache))
    output = None if folder is None else Path(folder)
    experiment = prepare(plan, Progress(), kept, trust_remote_code=trusted, output=output)
    return Runner(experiment, experiment.trials)


# --- worker processes --------------------------------------------------------------------------


def _in_processes(tasks: dict[Task, Trial], workers: int, threads: int) -> Outcomes:
    """Outcomes of worker processes.

    Where a worker dies, those of the trials that were under way are tried once more, one at a
    time, so that the one which kills its worker is known and the others are not lost; the rest
    goes on side by side.
    """
    todo = deque(tasks)
    while todo:
        suspects: list[Task] = []
        with worker_pool(workers) as pool:
            futures: dict[Future[Outcome], Task] = {}
            while (todo or futures) and not suspects:
                while todo and len(futures) <= workers:  # one waits, so that no worker does
                    task = todo.popleft()
                    futures[_submit(pool, task)] = task
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    task = futures.pop(future)
                    outcome = _result(future, tasks[task])
                    if outcome is None:
                        suspects.append(task)
                    else:
                        yield outcome
            suspects += futures.values()
        while suspects:
            with worker_pool(1) as pool:
                broken = False
                while suspects and not broken:
                    task = suspects.pop(0)
                    outcome = _result(_submit(pool, task), tasks[task])
                    broken = outcome is None
                    yield outcome or failed(tasks[task], HfcompressError(_DIED))


def _submit(pool: ProcessPoolExecutor, task: Task) -> Future[Outcome]:
    try:
        return pool.submit(perform_task, task)
    except BrokenProcessPool as error:  # a worker died while none was waited for
        future: Future[Outcome] = Future()
        future.set_exception(error)
        return future


_DIED = "its worker process died, out of memory perhaps; use fewer workers"


def _result(future: Future[Outcome], trial: Trial) -> Outcome | None:
    """The outcome of a trial; None where some worker of its pool has died."""
    try:
        return future.result()
    except BrokenProcessPool:
        return None
    except Exception as error:  # the worker could not be prepared
        return failed(trial, error)


# --- Ray ---------------------------------------------------------------------------------------


def _on_ray(tasks: dict[Task, Trial], workers: int, threads: int) -> Outcomes:
    ray: Any = require("ray", "ray")

    started = not ray.is_initialized()
    if started:
        ray.init(
            num_cpus=workers * threads, include_dashboard=False, log_to_driver=False,
            configure_logging=False,
        )  # fmt: skip
    try:
        remote = ray.remote(num_cpus=threads, max_retries=0)(perform_task)
        waiting = {remote.remote(task): trial for task, trial in tasks.items()}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            trial = waiting.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines()
                yield failed(trial, HfcompressError(lines[-1] if lines else "Ray failed"))
    finally:
        if started:
            ray.shutdown()
