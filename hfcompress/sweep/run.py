"""``run``: a recipe -> rows. Trials share their common prefix; finished ones are not repeated."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from hfcompress.errors import OutputError
from hfcompress.measure.environment import environment
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.schema import Recipe, expand, load_recipe
from hfcompress.recipes.yaml import dump_yaml
from hfcompress.report.page import headline
from hfcompress.report.rows import is_failed
from hfcompress.report.rows_view import RowsView
from hfcompress.report.write import PAGE, write_report
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.digests import check_comment, with_comment
from hfcompress.sweep.executors import EngineName, in_process, in_workers
from hfcompress.sweep.experiment import Experiment, prepare
from hfcompress.sweep.outcome import Outcome, failed_row, keep
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.tracking import track_row
from hfcompress.sweep.trial import Runner
from hfcompress.training.tracking import Tracker
from hfcompress.utils import Fields, Progress, Row

WRITTEN = "recipe.written.yaml"


@dataclass(frozen=True)
class SweepResult(RowsView, Sequence[Row]):
    """What a run gave: a sequence of its rows, and what else there is to say.

    Attributes:
        rows: one for each finished trial, in the grid's order.
        failures: trials that failed, now or in an earlier run of the folder, as ``(settings,
            reason)``.
        output: the run's folder; None where nothing was to be written.
    """

    rows: list[Row]
    failures: list[tuple[Fields, str]]
    output: Path | None

    def __repr__(self) -> str:
        where = "" if self.output is None else f", in {self.output}"
        said = f"; {headline(self.rows)}" if self.rows else ""
        return f"SweepResult({len(self.rows)} rows, {len(self.failures)} failed{where}{said})"

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self.rows[index]


def run(
    recipe: Recipe,
    output: str | Path | None = None,
    progress: Progress | None = None,
    cache: StepCache | None = None,
    draw: bool = True,
    workers: int = 1,
    engine: EngineName = "process",
    trust_remote_code: bool = False,
    wait: bool = False,
    retry_failed: bool = True,
    fail_fast: bool = False,
) -> SweepResult:
    """Run a recipe; finish what is missing where the folder has some of its rows.

    Args:
        recipe: from `load_recipe`, `parse_recipe` or ``Recipe(...)``.
        output: the run's folder (see `RunDirectory`); nothing is written where None.
        progress: receives stages, counts and notes.
        cache: where results of training steps are kept.
        draw: write table, curves and page at the end.
        workers: trials that run side by side. More than one pays on many cores; a script that
            asks for it needs the usual ``if __name__ == "__main__"``.
        engine: what the workers are: processes of this machine, or Ray's.
        trust_remote_code: run code of models and metrics where the recipe asks for it, too.
        wait: wait where another process is at work in the folder.
        retry_failed: run trials again that failed in an earlier run of the folder.
        fail_fast: begin no trial after one that failed.

    Raises:
        BadInputError: anything the recipe names that does not fit, before anything is written.
        OutputError: another process is at work in the folder, or it belongs to another recipe.
    """
    progress = progress or Progress()
    store = None if output is None else RunDirectory(Path(output))
    with ExitStack() as stack:
        if store is not None and store.path.is_dir():  # refused before what takes time
            stack.enter_context(store.locked(wait, progress.note))
        experiment = prepare(
            recipe, progress, cache or StepCache(), trust_remote_code=trust_remote_code,
            output=None if store is None else store.path,
        )  # fmt: skip
        if store is not None:
            stack.enter_context(store.locked(wait, progress.note))

        def outcomes(pending: list[Trial]) -> Generator[Outcome, None, None]:
            folder = None if store is None else store.path
            if workers == 1 and engine == "process":
                return in_process(Runner(experiment, pending), folder)
            return in_workers(experiment, pending, folder, workers, engine)

        return finish(experiment, store, outcomes, draw, retry_failed, fail_fast)


@dataclass(frozen=True)
class Sheet:
    """What a run's folder says of the run.

    Attributes:
        name: of the page.
        text: what was run, as YAML.
        file: its name in the folder.
        track: where the rows are logged, too.
        references: gives what the answers are compared with, a hash of the measured rows, and the
            task's name; None where there is no such thing.
        written: what was run as its author wrote it; empty where that is not known.
    """

    name: str
    text: str
    file: str
    track: Sequence[Tracker]
    references: Callable[[], tuple[object, str, str] | None]
    written: str = ""


def finish(
    experiment: Experiment,
    store: RunDirectory | None,
    outcomes: Callable[[list[Trial]], Generator[Outcome, None, None]],
    draw: bool = True,
    retry_failed: bool = True,
    fail_fast: bool = False,
) -> SweepResult:
    """Run the trials that have no row yet, and keep each row as it comes.

    Args:
        experiment: the recipe with all that it names loaded.
        store: the run's folder, locked; nothing is written where None.
        outcomes: carries trials out.
        draw: write table, curves and page at the end.
        retry_failed: run trials again whose rows say that they failed.
        fail_fast: begin no trial after one that failed.

    Raises:
        OutputError: the folder contains rows of another recipe.
    """
    recipe = experiment.recipe
    sheet = Sheet(
        recipe.name, dump_yaml(recipe.to_dict()), "recipe.yaml", recipe.track,
        lambda: (experiment.references, experiment.eval_hash, experiment.task.name),
        recipe.written,
    )  # fmt: skip
    return finish_trials(
        experiment.trials, sheet, experiment.progress, store, outcomes, draw, retry_failed,
        fail_fast,
    )  # fmt: skip


def finish_trials(
    all_trials: Sequence[Trial],
    sheet: Sheet,
    progress: Progress,
    store: RunDirectory | None,
    outcomes: Callable[[list[Trial]], Generator[Outcome, None, None]],
    draw: bool = True,
    retry_failed: bool = True,
    fail_fast: bool = False,
) -> SweepResult:
    """Run the trials that have no row yet, and keep each row as it comes.

    Args:
        all_trials: with content hashes.
        sheet: what the folder says of the run.
        progress: receives stages, counts and notes.
        store, outcomes, draw, retry_failed, fail_fast: as `finish`.

    Raises:
        OutputError: the folder contains rows of another run.
    """
    trials = {trial.row_hash: trial for trial in all_trials}
    rows = [] if store is None else _claim(store, trials, progress, retry_failed)
    done = {str(row["hash"]) for row in rows}
    pending = [trial for key, trial in trials.items() if key not in done]
    is_new = bool(pending)
    if store is not None:
        is_new = store.write_text(sheet.file, with_comment(sheet.text)) or is_new
        if sheet.written:
            is_new = store.write_text(WRITTEN, with_comment(sheet.written)) or is_new
        else:  # an earlier run's
            (store.path / WRITTEN).unlink(missing_ok=True)
        if pending or store.read_json("environment.json") is None:
            store.write_json("environment.json", environment())
        if pending and (asked := sheet.references()) is not None:
            store.save_references(*asked)
    if pending:  # those of a folder are read again at the end
        rows = []
    progress.sweep(len(done), len(trials))
    with closing(outcomes(pending)) as found:  # so that workers end with an interrupt, too
        for outcome in found:
            trial = trials[outcome.row_hash]
            row = outcome.row or failed_row(trial, outcome.reason)
            if store is not None:
                keep(outcome, trial, store)
                track_row(sheet.track, sheet.name, row, store.path, progress.note)
            else:
                rows.append(row)
            done.add(outcome.row_hash)
            if outcome.row is not None:
                progress.row(outcome.row)
            else:
                progress.note(f"a trial failed: {outcome.reason}")
            progress.sweep(len(done), len(trials))
            if outcome.row is None and fail_fast:
                break
    if store is not None and pending:
        rows = store.every_row()
    ordered = _ordered(rows, lambda row: trials[row["hash"]].index)
    if store is not None and draw and ordered and (is_new or not store.is_newer(PAGE)):
        _draw(ordered, store, sheet.name, sheet.text, progress.note)
    finished = [row for row in ordered if not is_failed(row)]
    failures = [(row["settings"], str(row["reason"])) for row in ordered if is_failed(row)]
    return SweepResult(finished, failures, None if store is None else store.path)


def _claim(
    store: RunDirectory, hashes: Collection[str], progress: Progress, retry_failed: bool
) -> list[Row]:
    """The rows that the folder has of these trials.

    Raises:
        OutputError: the folder contains rows of another recipe.
    """
    rows = store.claim(hashes)
    for note in store.notes:
        progress.note(note)
    finished = {row["hash"] for row in rows}
    failed = store.keep_failures(() if retry_failed else set(hashes) - finished)
    if failed:
        progress.note(f"{len(failed)} trials failed in an earlier run and are not tried again")
    return rows + failed


def _ordered(rows: Iterable[Row], place: Callable[[Row], int]) -> list[Row]:
    """Rows in the grid's order, which may have grown since some of them were written."""
    found = [{**row, "index": place(row)} for row in rows]
    return sorted(found, key=lambda row: int(row["index"]))


def _places(recipe: Recipe) -> Callable[[Row], int]:
    """Says the place of a row in a recipe's grid; of a row that is not in it, the one it had."""

    def key(settings: Fields, steps: Sequence[object]) -> str:
        return json.dumps([len(steps), settings])

    places = {key(trial.settings, trial.steps): trial.index for trial in expand(recipe)}
    return lambda row: places.get(key(row["settings"], row["steps"]), int(row["index"]))


def report(directory: str | Path, note: Callable[[str], None] = lambda _: None) -> list[Row]:
    """Draw table, curves and page of a run's folder again, from its rows alone.

    Args:
        directory: the folder.
        note: receives a sentence for each line that is damaged and left out.

    Returns:
        The rows of finished trials, in the grid's order.

    Raises:
        OutputError: the folder contains no results, cannot be written, or a row cannot be read.
    """
    store = RunDirectory(Path(directory))
    if not store.rows_file.is_file() and not store.failures():
        raise OutputError(
            f"{directory} contains no {store.rows_file.name}; give the folder of a run"
        )
    path = store.path / "recipe.yaml"
    text = check_comment(path) if path.exists() else ""
    recipe = load_recipe(path) if text else None
    if not text and (sheet := store.path / "sweep.yaml").exists():
        text = check_comment(sheet)
    rows = store.every_row()
    ordered = rows if recipe is None else _ordered(rows, _places(recipe))
    _draw(ordered, store, None if recipe is None else recipe.name, text, note)
    return [row for row in ordered if not is_failed(row)]


def _draw(
    rows: Sequence[Row],
    store: RunDirectory,
    name: str | None,
    recipe_text: str,
    note: Callable[[str], None],
) -> None:
    """Write table, curves and page of rows into their folder; ``note`` receives what is damaged."""
    weights, written = store.weights(), store.path / WRITTEN
    for problem in store.notes:
        note(problem)
    write_report(
        rows,
        store.path,
        recipe_text=recipe_text,
        written_text=check_comment(written) if written.exists() else None,
        environment=store.read_json("environment.json"),
        weights=weights,
        shipped=store.read_json("found.json"),
        title="Compression report" if name is None else f"Compression report: {name}",
    )
