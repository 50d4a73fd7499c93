"""Several runs on one page: their rows together, each with the name of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hfcompress.report.rows import Row


def run_names(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: its last part, with as many parts before it as tell it apart."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names


def rows_together(runs: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The rows of all runs, in order, each with its run's name as ``run``; `method_of` a row
    begins with it, so that each run has lines of its own.

    Args:
        runs: name -> rows.
    """
    return [{**row, "run": name} for name, rows in runs.items() for row in rows]


def run_of(row: Row) -> str:
    """The name of the run that a row is from; empty where the rows are of one run."""
    return str(row.get("run") or "")


def are_several(rows: Sequence[Row]) -> bool:
    """Whether rows are of several runs."""
    return any("run" in row for row in rows)
