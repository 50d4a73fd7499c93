"""What every benchmark ends with: figures, each against its target, as a table and as JSON.

::

    figures = [Figure("per-layer speedup", 41.0, "x", low=38.0, high=44.0, target=">= 20")]
    report(figures, "prune_time", parse_arguments(__doc__).json)

The JSON file holds ``{"benchmark": ..., "figures": [...], "environment": {...}}``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hfcompress.measure.environment import environment
from hfcompress.utils import atomic_write


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the median where it was repeated.
        unit: ``"x"``, ``"s"``, ``"MB"``, ``"points"`` ...
        low, high: the smallest and largest of the repetitions; None where there was one.
        target: what is to be reached, ``">= 20"`` or ``"<= 1.5"``; None for information.
        note: what a reader needs to know.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    target: str | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None when there is none."""
        if self.target is None:
            return None
        sign, bound = self.target.split()
        return self.value >= float(bound) if sign == ">=" else self.value <= float(bound)


def spread(name: str, values: Sequence[float], unit: str, target: str | None = None) -> Figure:
    """A figure from repetitions: their median, smallest and largest."""
    return Figure(name, statistics.median(values), unit, min(values), max(values), target)


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def parse_arguments(description: str | None, **flags: str) -> argparse.Namespace:
    """The command line that all benchmarks share.

    Args:
        description: the benchmark's docstring, shown by ``--help``.
        flags: further options by name, each with its help text (``train="path of ..."``).
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    for name, text in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=text)
    return parser.parse_args()


def kept_figures(path: Path, make: Callable[[], Iterable[Figure]]) -> list[Figure]:
    """The figures of a file, or made and put there, so that a run that was cut goes on.

    Nothing is no result: where ``make`` gives none, the next run tries again.
    """
    if path.is_file():
        return [Figure(**plain) for plain in json.loads(path.read_text(encoding="utf-8"))]
    figures = list(make())
    if figures:
        atomic_write(path, json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
    return figures


def report(figures: Sequence[Figure], benchmark: str, path: Path | None = None) -> None:
    """Print the figures as a table and, given a path, write them as JSON (whole or not at all)."""
    table = Table(title=benchmark)
    for column in ("figure", "value", "spread", "target", "met"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for figure in figures:
        ends = "" if figure.low is None else f"{figure.low:.4g} to {figure.high:.4g}"
        met = {None: "", True: "yes", False: "NO"}[figure.met]
        value = f"{figure.value:.4g} {figure.unit}"
        table.add_row(figure.name, value, ends, figure.target or "", met)
    Console().print(table)
    if path is not None:
        rows = [{**asdict(figure), "met": figure.met} for figure in figures]
        content = {"benchmark": benchmark, "figures": rows, "environment": environment()}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)
