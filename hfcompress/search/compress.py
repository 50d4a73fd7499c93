"""``compress``: search for the smallest or fastest model that meets a target."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from hfcompress.data.config import DataConfig
from hfcompress.errors import ConfigError, DataError, ModelError, OutputError
from hfcompress.measure.environment import environment
from hfcompress.recipes.schema import Recipe
from hfcompress.recipes.yaml import parse_yaml
from hfcompress.report.card import model_card
from hfcompress.search.candidates import Candidate, candidates
from hfcompress.search.choice import CHOOSE, Measured, for_choosing, measure_once
from hfcompress.search.search import (
    MODEL,
    Search,
    drop_of,
    miss,
    speedup_of,
    try_candidate,
    worth_it,
)
from hfcompress.search.target import CompressTarget
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.cards import card_source
from hfcompress.sweep.experiment import Experiment, prepare
from hfcompress.sweep.pipeline import GIVEN, Data, as_data, given
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import report
from hfcompress.sweep.trial import Runner
from hfcompress.tasks.registry import untrained_head
from hfcompress.utils import Device, Fields, Progress, Row, check_pretrained, size_text

if TYPE_CHECKING:
    from hfcompress.quantization.model import Processor

SEARCH = "search.json"
MEASURED = "measured.json"
# Predictions of size are this exact; a candidate that is further away is not tried.
_SLACK = 1.05
_NO_DATA = "compress learns from examples and measures on others: give data (--data FOLDER)"


@dataclass(frozen=True)
class CompressResult:
    """What a search found.

    Attributes:
        found: the row of the smallest (or, where only speed was asked for, fastest) model that
            meets the target; None where none does.
        nearest: the row that came nearest; ``found`` where there is one.
        rows: every candidate that was tried, in the order of trying.
        model: the folder of the found model, ready to deploy; None where none meets the target.
        measured: what it does on the measured rows, which nothing was chosen on; None where
            nothing was found.
        sentence: the result in one sentence.
        output: the search's folder.
    """

    found: Row | None
    nearest: Row | None
    rows: list[Row]
    model: Path | None
    measured: Measured | None
    sentence: str
    output: Path


def compress(
    model: str | Path | PreTrainedModel,
    data: Data | None,
    target: CompressTarget,
    *,
    processor: Processor | None = None,
    output: str | Path = "runs/compress",
    task: str = "text-classification",
    progress: Progress | None = None,
    cache: StepCache | None = None,
    seed: int = 0,
    wait: bool = False,
    device: Device | None = None,
) -> CompressResult:
    """Find a small and fast model that meets a target::

        result = compress("my-model", "sentences/", CompressTarget(max_size="10MB", speedup=6))
        print(result.sentence)
        hfcompress.load(result.model)("a gripping film")

    Sizes are predicted first; what cannot be small enough is never made. What is left is tried in
    the order of expected loss, without training where that is an option; a candidate that
    is too large or too slow before training is not trained. The first that meets the target is
    the answer; with ``target.minutes`` the search goes on for smaller (faster) ones. Every row is
    kept: the same call goes on where it stopped.

    Args:
        model: a fine-tuned classifier: hub name, folder, or the model itself.
        data: what to learn from and to measure on: a path, `DataConfig`, or data sets by split.
        target: what is wanted.
        processor: the tokenizer or image processor, where ``model`` is a model.
        output: folder of the rows, the report and, in ``model/``, the model that is found.
        task: decides the Auto class.
        progress: receives stages, counts and notes.
        cache: where results of training steps are kept.
        seed: for sampling, initialisation and training.
        wait: wait where another process is at work in the folder.
        device: where models train and predict, as in a recipe.

    Raises:
        DataError: no data.
        ConfigError: a size that nothing here reaches.
        OutputError: the folder belongs to another model or other data.
        BadInputError: a model or data that cannot be used.
    """
    check_pretrained(model, "compress", "compress_module takes any module")
    if data is None:
        raise DataError(_NO_DATA)
    progress, store = progress or Progress(), RunDirectory(Path(output))
    started = time.monotonic()
    with ExitStack() as stack:
        if store.path.is_dir():  # refused before what takes time
            stack.enter_context(store.locked(wait, progress.note))
        whole = _experiment(
            model, data, target, processor, task, seed, progress, cache or StepCache(), device
        )
        experiment = for_choosing(whole)
        wanted = _small_enough(candidates(experiment, target), target)
        stack.enter_context(store.locked(wait, progress.note))
        rows = _claim(store, experiment)
        deadline = None if target.minutes is None else started + 60 * target.minutes
        runner = Runner(experiment, [], keep_long=True)
        search = Search(experiment, target, store, runner, rows, deadline)
        _try(search, wanted)
        return _result(search, _measured(search, whole))


def plan_search(
    model: str,
    data: Data | None,
    target: CompressTarget,
    *,
    task: str = "text-classification",
    progress: Progress | None = None,
    seed: int = 0,
    device: Device | None = None,
) -> list[Fields]:
    """Return what `compress` would try, in its order: name, predicted bytes, steps.

    Model and data are read, and all is checked; nothing is trained or written.

    Raises:
        HfcompressError: as `compress`.
    """
    if data is None:
        raise DataError(_NO_DATA)
    whole = _experiment(
        model, data, target, None, task, seed, progress or Progress(), StepCache(), device
    )
    wanted = _small_enough(candidates(for_choosing(whole), target), target)
    return [
        {"candidate": one.name, "bytes": one.bytes, "steps": list(one.trained or one.steps)}
        for one in wanted
    ]


def _try(search: Search, wanted: list[Candidate]) -> None:
    """Try candidates until one meets the target or, with a deadline, until that."""
    progress, deadline = search.experiment.progress, search.deadline
    for number, candidate in enumerate(wanted):
        progress.sweep(number, len(wanted))
        if not worth_it(search, candidate):
            continue
        try_candidate(search, candidate)
        if search.best is not None and deadline is None:
            break
        if deadline is not None and time.monotonic() > deadline:
            progress.note("the minutes are over; the same command goes on with more of them")
            break
    progress.sweep(len(wanted), len(wanted))


def data_config(path: str | None, settings: Sequence[str]) -> DataConfig | None:
    """The data that a command line names.

    Args:
        path: a source; None where none is named.
        settings: fields of `DataConfig`, ``name=sst2`` each; the value is YAML.

    Raises:
        ConfigError: a field that does not fit.
    """
    fields: Fields = {"path": path}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting!r}: write KEY=VALUE with a field of the data")
        fields[key] = parse_yaml(text, f"--set {key}")
    return None if path is None else DataConfig.from_dict(fields, "data")


# --- preparing ---------------------------------------------------------------------------------


def _experiment(
    model: str | Path | PreTrainedModel,
    data: Data,
    target: CompressTarget,
    processor: Processor | None,
    task: str,
    seed: int,
    progress: Progress,
    cache: StepCache,
    device: Device | None = None,
) -> Experiment:
    config, splits = as_data(data)
    if config.choose is None:
        config = config.replace(choose=CHOOSE)
    own = None
    if not isinstance(model, (str, Path)):
        if processor is None:
            raise ModelError("a model needs its processor: compress(model, data, processor=...)")
        own = given(model, processor)
    recipe = Recipe.from_dict(
        {
            "name": "compress",
            "model": GIVEN if own is not None else str(model),
            "task": task,
            "data": config.to_dict(),
            # For the checks alone: that there are training rows, and something to quantize.
            "steps": [{"distill": {}}, {"quantize": target.quantization}],
            "measure": {
                "metric": target.metric,
                "latency": target.latency.to_dict(),
                "macs": False,
            },
            "seed": seed,
            "device": device,
        },
        "compress",
    )
    experiment = prepare(recipe, progress, cache, own, splits)
    if experiment.loaded.new_head:
        settings, name = experiment.loaded.model.config, str(recipe.model.path)
        raise ModelError(
            f"{untrained_head(settings, name, experiment.task)}; fine-tune it first (a recipe's "
            f"finetune step)"
        )
    return experiment


def _small_enough(every: list[Candidate], target: CompressTarget) -> list[Candidate]:
    """Those whose predicted size fits.

    Raises:
        ConfigError: none does.
    """
    if target.max_size is None:
        return every
    wanted = [one for one in every if one.bytes <= _SLACK * target.max_size]
    if not wanted:
        least = min(every, key=lambda one: one.bytes)
        raise ConfigError(
            f"max_size {size_text(target.max_size)} is below what this model can become: the "
            f"smallest way ({least.name}, {target.backend}) takes about {size_text(least.bytes)}"
        )
    return wanted


def _claim(store: RunDirectory, experiment: Experiment) -> dict[str, Row]:
    """Rows of earlier searches with the same model and data, by hash.

    Raises:
        OutputError: the folder is another model's.
    """
    mine = {
        "model": experiment.loaded.fingerprint,
        "train": experiment.train_hash,
        "eval": experiment.eval_hash,
    }
    known = store.read_json(SEARCH)
    if (known is None and store.rows_file.exists()) or known not in (None, mine):
        raise OutputError(
            f"{store.path} contains results of another model, other data or a recipe; choose "
            f"another --output or remove it"
        )
    store.write_json(SEARCH, mine)
    store.write_json("environment.json", environment())
    store.keep_failures(())
    return {row["hash"]: row for row in store.rows()}


def _measured(search: Search, whole: Experiment) -> Measured | None:
    """The one look at the measured rows; kept, so that the same search looks once."""
    row, target, store = search.best, search.target, search.store
    if row is None or search.best_trial is None:
        return None
    asked = [row["hash"], whole.eval_hash, whole.metric, target.max_drop, target.confidence]
    kept = store.read_json(MEASURED)
    if kept is not None and kept["asked"] == asked:
        return Measured.from_dict(kept["measured"])
    state, _ = search.runner.state_after(search.best_trial)
    found = measure_once(whole, state, target.max_drop, target.confidence)
    steps = [step.to_dict() for step in search.best_trial.steps]
    source = card_source(search.experiment, steps)
    chosen = {**row, **found.quality.to_dict()}
    card = model_card(chosen, name=store.path.name, source=source)
    store.write_text(f"{MODEL}/README.md", card)
    name = f"{row['settings']['candidate']}, on the measured rows"
    fields = {
        "hash": f"{row['hash']}-measured", "settings": {"candidate": name},
        "classes": [], "other_metrics": {},
    }  # fmt: skip
    measured = {**row, **found.quality.to_dict(), **fields, "index": len(search.tried)}
    if search.rows.get(measured["hash"]) != measured:
        store.append(measured)
    # Last: with it, all of the above is there, and nothing is measured again.
    store.write_json(MEASURED, {"asked": asked, "measured": found.to_dict()})
    return found


def _result(search: Search, measured: Measured | None) -> CompressResult:
    rows, target, store = search.tried, search.target, search.store
    if store.rows_file.is_file():
        report(store.path)
    nearest = search.best or min(rows, key=lambda row: miss(row, target), default=None)
    folder = None if search.best is None else store.path / MODEL
    sentence = _sentence(search, nearest, measured)
    return CompressResult(search.best, nearest, rows, folder, measured, sentence, store.path)


def _sentence(search: Search, row: Row | None, measured: Measured | None) -> str:
    wanted = search.target.sentence
    if row is None:
        return f"Nothing could be tried for {wanted}."
    name = row["settings"]["candidate"]
    got = (
        f"{size_text(row['bytes'])}, {drop_of(row):.1f} points lost on {row['n']:,} rows to choose "
        f"on, {speedup_of(row):.1f} times faster at {search.target.latency.label}"
    )
    if measured is None:
        return f"No model of {len(search.tried)} tried has {wanted}; the nearest is {name} ({got})."
    quality, sure = measured.quality, measured.certificate
    end = f"{100 * (quality.drop or 0):.1f} points lost on the {quality.n:,} measured rows"
    if sure is not None:
        end = f"on the measured rows: {sure.sentence}"
    elif not measured.holds(search.target.max_drop):
        end += ", more than asked"
    return f"Found: {name} ({got}); {end}."
