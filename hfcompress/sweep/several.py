"""``report_runs``: several runs drawn together on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hfcompress.errors import ConfigError, OutputError
from hfcompress.report.rows import is_failed
from hfcompress.report.several import rows_together, run_names
from hfcompress.report.write import write_report
from hfcompress.sweep.comparison import compare_runs
from hfcompress.sweep.results import RunDirectory
from hfcompress.utils import Fields


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
