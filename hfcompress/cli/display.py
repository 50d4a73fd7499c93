"""The terminal: text as it is, the progress of a run, and signals that end a command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from hfcompress.utils import Progress, Row, visible


class Terminal(Console):
    """A console that shows text as it is: names of classes and files hold brackets, colons and
    control characters, which would be read as markup, emoji and commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """As a console, with control characters spelt out."""
        return super().render_str(visible(text), **settings)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the body as Ctrl-C does: a ``KeyboardInterrupt`` whose argument
    is the exit code, 128 plus the signal. A second signal ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, end)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


class Display(Progress):
    """Shows two bars, for the trials and for the current stage; notes and rows scroll above."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Bars(
            TextColumn("{task.description:42.42}", markup=False),
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
        self.console.print(f"note: {text}")

    def row(self, row: Row) -> None:
        """Print a finished trial's metric, sparsity and settings above the bars."""
        settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        self.console.print(
            f"{row['metric']} {row['value']:.2%} ({row['low']:.1%} to {row['high']:.1%}), "
            f"sparsity {row['actual_sparsity']:.2%}, {row['seconds']:.1f} s   {settings}"
        )
