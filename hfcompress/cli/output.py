"""What commands print: rows, notes, and the files of a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich takes tenths of a second to import
    from rich.console import Console

    from hfcompress.utils import Row


def print_json(rows: Iterable[Row]) -> None:
    """Print each row as one line of JSON on standard output."""
    for row in rows:
        print(json.dumps(row))


def note_on(console: Console, options: argparse.Namespace) -> Callable[[str], None]:
    """Return what prints a note, unless notes are not wanted."""
    return lambda text: None if options.quiet else console.print(f"note: {text}")


def show_written(output: str | Path, console: Console, options: argparse.Namespace) -> None:
    """Name the files of a run's report that are in its folder."""
    if options.quiet:
        return
    known = ("report.html", "curve.png", "bars.png", "heatmap.png", "pareto.png", "results.csv")
    names = [name for name in known if (Path(output) / name).is_file()]
    console.print(f"written to {output}: {', '.join(names)}")


def show_rows(rows: Sequence[Row], console: Console, options: argparse.Namespace) -> None:
    """Print rows as a table with their main result, or as lines of JSON."""
    if options.json:
        print_json(rows)
        return
    from hfcompress.report.page import headline
    from hfcompress.report.pipeline import is_pipeline, pipeline_rows
    from hfcompress.report.table import rows_table

    if rows:
        console.print(pipeline_rows(rows) if is_pipeline(rows) else rows_table(rows))
        console.print(headline(rows))
