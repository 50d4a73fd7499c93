"""``plan``: what a run would do, and about how long it takes; nothing is trained or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low

from hfcompress.recipes.grid import Trial
from hfcompress.recipes.schema import Recipe
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import prepare
from hfcompress.sweep.results import RunDirectory
from hfcompress.utils import Fields, Progress, Row


@dataclass(frozen=True)
class PlannedStep:
    """One of the recipe's steps, in all trials that are still to run.

    Attributes:
        name: of the step.
        trials: trials that go through it.
        models: different models that it makes; trials with the same beginning share one.
        kept: how many of these models are in the step cache.
        seconds: for those that are not; None where no such training was measured. Steps that do
            not train are part of their trials.
    """

    name: str
    trials: int
    models: int
    kept: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        trials: points of the grid.
        finished: trials that have a row in the folder.
        failed: trials that failed in an earlier run of the folder, and are to run again.
        pending: settings of the trials to run, in their order.
        steps: of these trials.
        measured: rows of the folder that the times are from.
        seconds: of the whole run in one process; None where nothing like it was measured.
    """

    trials: int
    finished: int
    failed: int
    pending: tuple[Fields, ...]
    steps: tuple[PlannedStep, ...]
    measured: int
    seconds: float | None

    def to_dict(self) -> Fields:
        """The plan as plain data."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The plan in one sentence."""
        failed = f" ({self.failed:,} of them failed before)" if self.failed else ""
        text = f"{len(self.pending):,} of {self.trials:,} trials to run{failed}"
        if not self.pending:
            return f"{text}; the run is finished."
        if self.seconds is None:
            return f"{text}; how long it takes is not known before trials of it are measured."
        minutes = self.seconds / 60
        return (
            f"{text}; about {minutes:.1f} minutes in one process, by {self.measured:,} measured "
            f"row{'s' * (self.measured != 1)}."
        )


def plan(
    recipe: Recipe,
    output: str | Path | None = None,
    progress: Progress | None = None,
    cache: StepCache | None = None,
    trust_remote_code: bool = False,
) -> Plan:
    """What `run` would do with the same arguments. Model and data are read, and all is checked.

    Raises:
        BadInputError: as `run`.
    """
    cache = cache or StepCache()
    store = None if output is None else RunDirectory(Path(output))
    experiment = prepare(recipe, progress or Progress(), cache, trust_remote_code=trust_remote_code)
    trials = {trial.row_hash: trial for trial in experiment.trials}
    rows = [] if store is None else store.claim(trials)
    done = {str(row["hash"]) for row in rows}
    failed = {str(row["hash"]) for row in ([] if store is None else store.failures())} - done
    pending = [trial for key, trial in trials.items() if key not in done]
    uses = Counter(prefix for trial in trials.values() for prefix in set(trial.prefixes))
    training, own = _times(rows, trials, uses)
    steps = [*_steps(pending, cache, training)]
    known = [own.get(_names(trial)) for trial in pending] + [step.seconds for step in steps]
    unknown = not rows or None in known
    return Plan(
        trials=len(trials),
        finished=len(done),
        failed=len(failed & trials.keys()),
        pending=tuple(trial.settings for trial in pending),
        steps=tuple(steps),
        measured=len(rows),
        seconds=None if unknown else sum(value for value in known if value is not None),
    )


def _steps(
    pending: Sequence[Trial], cache: StepCache, training: Mapping[str, float]
) -> Iterator[PlannedStep]:
    """The steps place by place; several where the trials' steps differ in name."""
    found: dict[tuple[int, str, bool], list[str]] = {}
    for trial in pending:
        for place, step in enumerate(trial.steps):
            key = (place, step.name, step.config.trains)
            found.setdefault(key, []).append(trial.prefixes[place + 1])
    for (_, name, trains), prefixes in sorted(found.items()):
        models = set(prefixes)
        kept = sum(cache.folder(prefix).is_dir() for prefix in models)
        each = training.get(name) if trains and kept < len(models) else 0.0
        seconds = None if each is None else each * (len(models) - kept)
        yield PlannedStep(name, len(prefixes), len(models), kept, seconds)


def _times(
    rows: Sequence[Row], trials: Mapping[str, Trial], uses: Mapping[str, int]
) -> tuple[dict[str, float], dict[tuple[str, ...], float]]:
    """Seconds of a training by its step's name, and of all else of a trial by its steps' names.

    A row's seconds contain the trainings that its trial shares with no other one. A shared one is
    in one row of many, which the median leaves out.
    """
    trainings: dict[str, list[float]] = {}
    others: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        trial, own = trials[str(row["hash"])], float(row["seconds"])
        for place, (step, report) in enumerate(zip(trial.steps, row["steps"], strict=True), 1):
            if step.config.trains and "seconds" in report:
                trainings.setdefault(step.name, []).append(float(report["seconds"]))
                alone = uses[trial.prefixes[place]] == 1
                own -= float(report["seconds"]) if alone else 0.0
        others.setdefault(_names(trial), []).append(max(own, 0.0))
    return (
        {name: median_low(values) for name, values in trainings.items()},
        {names: median_low(values) for names, values in others.items()},
    )


def _names(trial: Trial) -> tuple[str, ...]:
    return tuple(step.name for step in trial.steps)
