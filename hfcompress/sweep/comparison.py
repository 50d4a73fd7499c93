"""``compare_runs``: which of several runs or rows is better, and how sure that is;
``report_runs``: several runs drawn on one page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcompress.errors import ConfigError, HfcompressError, OutputError
from hfcompress.measure.bootstrap import LOWER_IS_BETTER, compare_units
from hfcompress.measure.comparison import (
    Difference,
    compare_classes,
    compare_intervals,
    compare_scores,
    holm,
)
from hfcompress.measure.evaluation import metric_names
from hfcompress.report.comparison import comparison_sentence
from hfcompress.report.page import shipped_row
from hfcompress.report.rows import Row, is_dense, is_failed, metric_of, number
from hfcompress.report.rows_view import RowsView
from hfcompress.report.several import rows_together, run_names
from hfcompress.report.write import write_report
from hfcompress.sweep.results import References, RunDirectory
from hfcompress.tasks.registry import find_task
from hfcompress.utils import Fields

_ALL = "all"
_DENSE = "dense"


@dataclass(frozen=True)
class RunComparison(RowsView):
    """Rows of runs from the best to the worst, each compared with the best one.

    Attributes:
        rows: of the runs, the best first, with ``run`` (its name), ``comparison`` (the best one's
            metric minus this one's, with interval, p and test; None of the best itself) and
            ``verdict``: ``best``, ``as good within noise``, ``worse`` or ``unknown``.
        sentence: the result in words.
    """

    rows: list[dict[str, Any]]
    sentence: str

    def __repr__(self) -> str:
        return f"RunComparison({len(self.rows)} rows: {self.sentence})"


@dataclass(frozen=True)
class _Entry:
    """A row of a run, and what its model answered."""

    run: str
    row: Row
    store: RunDirectory
    references: References | None

    @property
    def name(self) -> str:
        return f"{self.run}:{self.row.get('index', 0)}"

    @property
    def value(self) -> float:
        value = number(self.row, "value")
        assert value is not None
        return value

    @property
    def interval(self) -> tuple[float, float] | None:
        low, high = number(self.row, "low"), number(self.row, "high")
        return None if low is None or high is None else (low, high)

    @property
    def answers(self) -> dict[str, NDArray[Any]]:
        return self.store.load_arrays(str(self.row.get("hash")))


def compare_runs(*runs: str | Path) -> RunComparison:
    """Say which of several runs, or rows of runs, is better, and how sure that is.

    Where two rows have kept their answers on the same rows of data they are compared pair by pair:
    accuracy by McNemar's exact test (1947), other metrics by paired bootstrap over the task's own
    units: rows, sentences of taggers, questions, pairs or queries. Others are compared by their
    95 % intervals, which finds less. With more than two rows the p-values hold for all of them
    together (Holm 1979).

    Args:
        runs: folders of runs. A folder stands for the row that its page names; ``FOLDER:3`` for
            the row whose index is 3, ``FOLDER:dense`` for the dense model's, ``FOLDER:all`` for all
            rows, as does a single folder.

    Raises:
        OutputError: a folder without results, or no such row.
        ConfigError: fewer than two rows, or rows of different metrics.
    """
    chosen = [_split(run) for run in runs]
    folders = list(dict.fromkeys(folder for folder, _ in chosen))
    names = dict(zip(folders, run_names(folders), strict=True))
    only = len(runs) == 1
    entries = [
        entry
        for folder, which in chosen
        for entry in _entries(folder, names[folder], which or (_ALL if only else ""))
    ]
    entries = list({(str(one.store.path), one.name): one for one in entries}.values())
    metrics = {str(one.row.get("metric")): one.run for one in entries}
    if len(metrics) > 1:
        said = " and ".join(f"{run} measures {metric}" for metric, run in metrics.items())
        raise ConfigError(f"{said}; compare runs of one metric")
    if len(entries) < 2:
        raise ConfigError(
            f"{len(entries)} row to compare; give two runs, or rows of one such as FOLDER:0 "
            f"FOLDER:3"
        )
    return _ranked(entries)


def _ranked(entries: Sequence[_Entry]) -> RunComparison:
    """The rows from the best to the worst."""
    metric = metric_of([one.row for one in entries])
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    best, *others = sorted(entries, key=lambda one: -sign * one.value)
    found = holm([_difference(best, other, metric) for other in others])
    rows = [_with(best, None, "best")] + [
        _with(one, apart, _verdict(apart)) for one, apart in zip(others, found, strict=True)
    ]
    return RunComparison(rows, comparison_sentence(rows))


def _verdict(difference: Difference) -> str:
    if difference.p is None:
        return "unknown"
    return "worse" if difference.is_certain else "as good within noise"


def _with(entry: _Entry, difference: Difference | None, verdict: str) -> dict[str, Any]:
    comparison = None if difference is None else difference.to_dict()
    return {**entry.row, "run": entry.run, "comparison": comparison, "verdict": verdict}


# --- two rows ----------------------------------------------------------------------------------


def _difference(first: _Entry, second: _Entry, metric: str) -> Difference:
    """How much better a first row is than a second one."""
    found = _paired(first, second, metric)
    if found is not None:
        return found
    return compare_intervals(
        first.value, second.value, first.interval, second.interval,
        lower_is_better=metric in LOWER_IS_BETTER,
    )  # fmt: skip


def _paired(first: _Entry, second: _Entry, metric: str) -> Difference | None:
    """The comparison on the rows that both have answered; None where these are not the same."""
    ours, theirs = first.answers, second.answers
    same_run = first.store.path == second.store.path
    if same_run and "scores" in ours and "scores" in theirs:
        return compare_scores(ours["scores"], theirs["scores"])
    asked = first.references
    if asked is None or second.references is None or not {"logits"} <= ours.keys() & theirs.keys():
        return None
    same = asked.rows == second.references.rows and asked.task == second.references.task
    if same and "units" in ours and "units" in theirs:
        return _by_units(metric, asked.task, ours["units"], theirs["units"])
    logits, others = ours["logits"], theirs["logits"]
    if not same or not np.array_equal(asked.values, second.references.values):
        return None
    if not len(logits) == len(others) == len(asked.values):
        return None
    try:
        return _by_task(metric, asked, logits, others)
    except HfcompressError:  # a metric that the task itself does not have
        return None


def _by_units(
    metric: str, task: str, first: NDArray[Any], second: NDArray[Any]
) -> Difference | None:
    """The paired bootstrap over a task's units (sentences, questions, pairs, queries); None where
    the two have not the same ones."""
    known = find_task(task)
    if not len(first) or not known.same_units(first, second):
        return None
    own, dense = (known.of_units(metric, units) for units in (second, first))
    found = compare_units(metric, own, len(first), dense)
    assert found.drop is not None
    return Difference(
        found.drop, found.drop_low, found.drop_high, found.paired_p, "paired bootstrap", len(first)
    )


def _by_task(
    metric: str, asked: References, first: NDArray[Any], second: NDArray[Any]
) -> Difference | None:
    """The paired comparison of two models' outputs; None for a metric that takes too long.

    Raises:
        HfcompressError: the outputs do not fit the metric.
    """
    task, references = find_task(asked.task), asked.values
    if task.right(first, references) is not None:  # one class for each row
        known = metric in metric_names()
        return compare_classes(metric, first, second, references) if known else None
    quality = task.quality(metric, second, references, first)
    assert quality.drop is not None
    return Difference(
        quality.drop, quality.drop_low, quality.drop_high, quality.paired_p, "paired bootstrap",
        len(references),
    )  # fmt: skip


# --- which rows --------------------------------------------------------------------------------


def _split(run: str | Path) -> tuple[Path, str]:
    """The folder and the row of ``FOLDER:ROW``."""
    text = str(run)
    folder, colon, which = text.rpartition(":")
    if Path(text).is_dir() or not colon or not folder:
        return Path(text), ""
    return Path(folder), which


def _entries(folder: Path, name: str, which: str) -> list[_Entry]:
    """The rows of a folder that are asked for, finished ones.

    Raises:
        OutputError: no results, or no such row.
    """
    store = RunDirectory(folder)
    rows = [
        row for row in store.rows() if not is_failed(row) and number(row, "value") is not None
    ] if folder.is_dir() else []  # fmt: skip
    if not rows:
        raise OutputError(f"{folder} contains no results; give the folder of a run")
    found = _chosen(rows, which, store)
    if not found:
        known = [str(row.get("index")) for row in rows]
        known += [_DENSE] if any(map(is_dense, rows)) else []
        raise OutputError(f"{folder} has no row {which!r}; it has {', '.join(known[:20])}")
    return [_Entry(name, row, store, store.references()) for row in found]


def _chosen(rows: list[dict[str, Any]], which: str, store: RunDirectory) -> list[dict[str, Any]]:
    if which == _ALL:
        return rows
    if which == _DENSE:
        return [row for row in rows if is_dense(row)][:1]
    if which:
        return [row for row in rows if which in (str(row.get("index")), row.get("hash"))][:1]
    named = shipped_row(rows, store.read_json("found.json"))
    if named is None:
        sign = -1.0 if metric_of(rows) in LOWER_IS_BETTER else 1.0
        compressed = [row for row in rows if not is_dense(row)]
        named = max(compressed or rows, key=lambda row: sign * row["value"])
    return [dict(named)]


def report_runs(directories: Sequence[str | Path], output: str | Path) -> list[Fields]:
    """Draw several runs on one page: a line for each method of each run, the Pareto front, one
    table, and which run is better.

    Args:
        directories: folders of runs of one metric.
        output: where to; another folder than theirs.

    Returns:
        The rows of finished trials of all runs, each with its run's name as ``run``.

    Raises:
        OutputError: a folder without results, or ``output`` is one of the folders or holds a run.
        ConfigError: runs of different metrics, or a folder that is given twice.
    """
    folders = [Path(directory) for directory in directories]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("a folder is given twice; give each run once")
    target = RunDirectory(Path(output))
    if target.rows_file.is_file() or target.failures():
        raise OutputError(
            f"{output} holds a run of its own; give --output another folder for the page of several"
        )
    names = run_names(folders)
    lead = compare_runs(*folders).sentence
    stores = [RunDirectory(folder) for folder in folders]
    rows = rows_together(
        {name: store.every_row() for name, store in zip(names, stores, strict=True)}
    )
    write_report(
        rows,
        target.path,
        environment={
            name: store.read_json("environment.json") or {}
            for name, store in zip(names, stores, strict=True)
        },
        title=f"Compression report: {', '.join(names)}",
        lead=lead,
    )
    return [dict(row) for row in rows if not is_failed(row)]
