"""``hfcompress report`` and ``hfcompress compare``: what finished runs say."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hfcompress.cli.output import print_json, show_rows, show_written
from hfcompress.errors import ConfigError

if TYPE_CHECKING:  # it takes tenths of a second to import
    from rich.console import Console


def report_command(options: argparse.Namespace, console: Console) -> int:
    """Carry out ``hfcompress report``.

    Raises:
        OutputError: no results, or a folder that cannot be written.
        ConfigError: several runs of different metrics.
    """
    from hfcompress.cli.display import Display
    from hfcompress.sweep.comparison import report_runs
    from hfcompress.sweep.results import RunDirectory
    from hfcompress.sweep.run import report

    folders = [Path(folder) for folder in options.directories]
    if len(folders) == 1 and options.output is not None:
        raise ConfigError("--output is for the page of several runs; one has its own folder")
    output = folders[0] if len(folders) == 1 else Path(options.output or "runs/report")
    with Display(console, options.quiet) as display:
        display.stage("drawing the page")
        rows = report(output, display.note) if len(folders) == 1 else report_runs(folders, output)
    show_rows(rows, console, options)
    failed = sum(len(RunDirectory(folder).failures()) for folder in folders)
    if failed:
        console.print(f"{failed} trials failed; results.csv says why")
    show_written(output, console, options)
    return 0


def compare_command(options: argparse.Namespace, console: Console) -> int:
    """Carry out ``hfcompress compare``.

    Raises:
        OutputError: no results, or no such row.
        ConfigError: fewer than two rows, or different metrics.
    """
    from hfcompress.cli.display import Display
    from hfcompress.report.comparison import comparison_table
    from hfcompress.sweep.comparison import compare_runs

    with Display(console, options.quiet) as display:
        display.stage("comparing")
        found = compare_runs(*options.runs)
    if options.json:
        print_json(found.rows)
    else:
        console.print(comparison_table(found.rows))
    console.print(found.sentence)
    return 0
