"""The progress of a run, drawn in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from hfcompress.utils import Progress, Row


class Display(Progress):
    """Shows two bars, for the trials and for the current stage; notes and rows scroll above."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Bars(
            TextColumn("{task.description:42.42}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self.trials = self.bars.add_task("trials", total=None)
        self.piece = self.bars.add_task("starting", total=None)

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def sweep(self, done: int, total: int) -> None:
        """Advance the bar of trials."""
        self.bars.update(self.trials, completed=done, total=total)

    def stage(self, text: str) -> None:
        """Restart the bar of the current stage under a new text."""
        self.bars.reset(self.piece, description=text, total=None)

    def work(self, done: int, total: int) -> None:
        """Advance the bar of the current stage."""
        self.bars.update(self.piece, completed=done, total=total)

    def note(self, text: str) -> None:
        """Print a note above the bars."""
        self.console.print(f"note: {text}", markup=False)

    def row(self, row: Row) -> None:
        """Print a finished trial's metric, sparsity and settings above the bars."""
        settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        self.console.print(
            f"{row['metric']} {row['value']:.2%} ({row['low']:.1%} to {row['high']:.1%}), "
            f"sparsity {row['actual_sparsity']:.2%}, {row['seconds']:.1f} s   {settings}",
            markup=False,
        )
