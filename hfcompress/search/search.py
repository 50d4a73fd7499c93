"""The search behind `compress`: candidates tried in order, every row kept."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np

from hfcompress.inference import predict
from hfcompress.quantization.model import QuantizedModel
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.step_configs import DistillConfig, parse_steps
from hfcompress.recipes.yaml import dump_yaml
from hfcompress.report.card import model_card
from hfcompress.search.candidates import Candidate
from hfcompress.search.target import CompressTarget
from hfcompress.sweep.cards import card_source
from hfcompress.sweep.digests import with_comment
from hfcompress.sweep.experiment import Experiment
from hfcompress.sweep.outcome import keep, perform
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.timing import first_times, time_model
from hfcompress.sweep.trial import Runner
from hfcompress.utils import Row

FOUND = "found.json"
MODEL = "model"
# Passes over a row in training, in forward passes of the dense model: the student's three, the
# teacher's one, and what surrounds them.
_PASSES = 5.0
# Points that int8 may cost: what a finer one could give back.
_INT8 = 1.0
# Seconds of re-timing when the quartiles straddle the target speedup.
_AGAIN = 10.0


@dataclass
class Search:
    """One search at work.

    Attributes:
        experiment: the model and the data.
        target: what is wanted.
        store: the search's folder.
        runner: carries trials out.
        rows: all rows of the folder, by hash.
        deadline: ``time.monotonic`` after which nothing begins; None for none.
        tried: the rows of this search, in order.
        best: of them the best that meets the target.
        best_trial: its trial.
        seconds_per_row: a forward pass of the dense model, once measured.
        slow: the smallest share of the encoder that surely was too slow; a larger one is no
            faster, whatever its vocabulary.
    """

    experiment: Experiment
    target: CompressTarget
    store: RunDirectory
    runner: Runner
    rows: dict[str, Row]
    deadline: float | None
    tried: list[Row] = field(default_factory=list)
    best: Row | None = None
    best_trial: Trial | None = None
    seconds_per_row: float | None = None
    slow: float = math.inf


def worth_it(search: Search, candidate: Candidate) -> bool:
    """Whether a candidate could be better than the best model so far."""
    best, target = search.best, search.target
    if candidate.share >= search.slow:
        search.experiment.progress.note(
            f"{candidate.name} is left out: {search.slow:.0%} of the encoder is too slow"
        )
        return False
    if best is None:
        return True
    if target.max_size is None:
        return candidate.share < 1.0
    return candidate.bytes < int(best["bytes"])


def try_candidate(search: Search, candidate: Candidate) -> None:
    """The candidate without training and, where that is too weak but small and fast, with it;
    in finer int8 where that could make the difference."""
    seed, target = search.experiment.recipe.seed, search.target
    trials = [
        (search.experiment.hashed(Trial(0, {"candidate": name}, seed, parse_steps(steps))), finer)
        for name, steps, finer in candidate.plans
    ]
    search.runner.expect(trial for trial, _ in trials)
    lost = 0.0
    for trial, finer in trials:
        if finer and lost > target.max_drop + _INT8:
            continue
        row = _row(search, replace(trial, index=len(search.tried)))
        if row is None:
            break
        search.tried.append(row)
        if meets_target(row, target):
            _keep_best(search, trial, row)
            break
        if finer:
            continue
        lost = drop_of(row)
        if too_slow(row, target):
            search.slow = min(search.slow, candidate.share)
        if not _small(row, target) or too_slow(row, target):
            break  # training changes neither
    for trial, _ in trials:
        search.runner.release(trial)


def _row(search: Search, trial: Trial) -> Row | None:
    """A trial's row: one that is kept, or carried out and kept; None where that cannot be."""
    key, progress = trial.row_hash, search.experiment.progress
    if key in search.rows:
        return search.rows[key]
    if not _time_for(search, trial):
        return None
    outcome = perform(search.runner, trial, search.store.path)
    if outcome.row is None:
        progress.note(f"{trial.settings['candidate']} failed: {outcome.reason}")
        keep(outcome, trial, search.store)
        return None
    _time_again(search, trial, outcome.row)
    keep(outcome, trial, search.store)
    search.rows[key] = outcome.row
    progress.row(outcome.row)
    return outcome.row


def _time_again(search: Search, trial: Trial, row: Row) -> None:
    """Replace a timing whose middle half of rounds lies on both sides of the speed wanted."""
    target, runner = search.target, search.runner
    if target.speedup is None or runner.latest is None:
        return
    speedup = row["timings"][0]["speedup"]
    if not speedup["low"] < target.speedup <= speedup["high"]:
        return
    search.experiment.progress.stage("timing again")
    timing = time_model(runner.latest.model, runner.dense_model(trial), target.latency, _AGAIN)
    row["timings"] = [timing]
    row["latency"] = first_times(row["timings"])


def _keep_best(search: Search, trial: Trial, row: Row) -> None:
    """Write folder and recipe of a model that meets the target, where it is the best so far."""
    search.best = _better(search.best, row, search.target)
    store, experiment = search.store, search.experiment
    folder = store.path / MODEL
    if search.best is not row:
        return
    search.best_trial = trial
    if folder.exists() and store.read_json(FOUND) == row["hash"]:
        return
    state, _ = search.runner.state_after(trial)
    assert isinstance(state.model, QuantizedModel)
    steps = [step.to_dict() for step in trial.steps]
    source = card_source(experiment, steps)
    card = model_card(row, name=store.path.name, source=source)
    state.model.save(folder, state.processor, card)
    text = dump_yaml(experiment.recipe.replace(steps=steps).to_dict())
    store.write_text("recipe.yaml", with_comment(text))
    store.write_json(FOUND, row["hash"])


def _time_for(search: Search, trial: Trial) -> bool:
    """Whether training would end before the deadline, by the dense model's speed on the data."""
    experiment = search.experiment
    place = next((i for i, step in enumerate(trial.steps, 1) if step.name == "distill"), None)
    if search.deadline is None or place is None:
        return True
    if experiment.cache.folder(trial.prefixes[place]).is_dir():
        return True  # another candidate's training
    config = trial.steps[place - 1].config
    assert isinstance(config, DistillConfig)
    if search.seconds_per_row is None:
        search.seconds_per_row = _seconds_per_row(search)
    train = experiment.train
    rows = 0 if train is None else len(train)
    needed = _PASSES * config.epochs * rows * search.seconds_per_row
    left = search.deadline - time.monotonic()
    if needed <= left:
        return True
    experiment.progress.note(
        f"{trial.settings['candidate']}: training would take about {needed / 60:.0f} minutes, and "
        f"{max(left, 0) / 60:.0f} are left"
    )
    return False


def _seconds_per_row(search: Search) -> float:
    experiment = search.experiment
    count = min(64, len(experiment.eval))
    some = experiment.eval.select(np.arange(count))
    started = time.monotonic()
    predict(experiment.loaded.model, some, experiment.recipe.measure.batch_size)
    return (time.monotonic() - started) / count


def drop_of(row: Row) -> float:
    """Points lost against the dense model."""
    return 100 * float(row["drop"])


def speedup_of(row: Row) -> float:
    """Times faster than the dense model in torch."""
    return float(row["timings"][0]["speedup"]["median"])


def _small(row: Row, target: CompressTarget) -> bool:
    return target.max_size is None or bool(row["bytes"] <= target.max_size)


def too_slow(row: Row, target: CompressTarget) -> bool:
    """Whether three quarters of the rounds say so: on a busy machine the median may not."""
    wanted = target.speedup
    return wanted is not None and float(row["timings"][0]["speedup"]["high"]) < wanted


def meets_target(row: Row, target: CompressTarget) -> bool:
    """Whether a row's model is within all of the target."""
    fast = target.speedup is None or speedup_of(row) >= target.speedup
    return _small(row, target) and fast and round(drop_of(row), 6) <= target.max_drop


def _better(best: Row | None, row: Row, target: CompressTarget) -> Row:
    if best is None:
        return row
    if target.max_size is None:
        return max((best, row), key=speedup_of)
    return min((best, row), key=lambda one: (one["bytes"], -speedup_of(one)))


def miss(row: Row, target: CompressTarget) -> float:
    """How far a row is from the target: relative excess of size and time, and points of drop."""
    missing = max(0.0, drop_of(row) - target.max_drop)
    if target.max_size is not None:
        missing += 10 * max(0.0, row["bytes"] / target.max_size - 1)
    if target.speedup is not None:
        missing += 10 * max(0.0, target.speedup / speedup_of(row) - 1)
    return missing
