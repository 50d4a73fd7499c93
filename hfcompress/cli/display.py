"""The terminal: text as it is, and the progress of a run."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from hfcompress.utils import Progress, Row, visible

_BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))
_TEXT = TextColumn("{task.description:42.42}", markup=False)
_BAR = BarColumn(bar_width=30)


class Terminal(Console):
    """A console that shows text as it is: names of classes and files hold brackets, colons and
    control characters, which would be read as markup, emoji and commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """As a console, with control characters spelt out."""
        return super().render_str(visible(text), **settings)


def loading(console: Console, quiet: bool = False) -> AbstractContextManager[object]:
    """Show a bar while the body imports libraries, which takes seconds; only in a terminal.

    The bar is there before the body begins: an import can hold up the thread that moves it.

    Args:
        console: where to.
        quiet: show nothing.
    """
    if quiet or not console.is_terminal:
        return nullcontext()
    bars = Bars(
        _TEXT, _BAR, TimeElapsedColumn(), console=console, transient=True, redirect_stdout=False
    )
    bars.add_task("loading", total=None)
    return bars


LINES_EVERY = 10.0
"""Seconds between two lines about one stage, where the output is not a terminal."""


class Display(Progress):
    """Shows two bars, for the trials and for the current stage; notes and rows scroll above.

    Where the output is a file or a pipe, a stage that takes long writes lines instead. Downloads
    from the hub are stages, too.

    Args:
        console: where to.
        quiet: show nothing.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.bars = Bars(
            _TEXT,
            _BAR,
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self.trials = self.bars.add_task("trials", total=None, count="", left="")
        self.piece = self.bars.add_task("starting", total=None, count="", left="")
        self._text, self._began = "starting", time.monotonic()
        self._line_at = self._began + LINES_EVERY
        self._downloads = ExitStack()

    def __enter__(self) -> Display:
        from hfcompress.models.download import showing_downloads  # imports pydantic

        self._downloads.enter_context(showing_downloads(self))
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.bars.disable:  # rich 13.7 ends disabled bars with an empty line
            self.bars.stop()
        self._downloads.close()

    def sweep(self, done: int, total: int) -> None:
        """Advance the bar of trials."""
        self.bars.update(self.trials, completed=done, total=total, count=f"{done}/{total}")

    def stage(self, text: str) -> None:
        """Restart the bar of the current stage under a new text."""
        self.bars.reset(self.piece, description=text, total=None, count="", left="")
        self._text, self._began = text, time.monotonic()
        self._line_at = self._began + LINES_EVERY

    def work(self, done: int, total: int) -> None:
        """Advance the bar of the current stage."""
        self._advance(done, total, f"{done}/{total}")

    def bytes(self, done: int, total: int) -> None:
        """Advance the bar of a download."""
        unit, size = next(((u, s) for u, s in _BYTES if total >= s), _BYTES[-1])
        self._advance(done, total, f"{done / size:.1f}/{total / size:.1f} {unit}")

    def _advance(self, done: int, total: int, count: str) -> None:
        now = time.monotonic()
        left = ""
        if 0 < done < total and now - self._began > 2:
            seconds = round((now - self._began) * (total - done) / done)
            left = f"{timedelta(seconds=seconds)} left"
        self.bars.update(self.piece, completed=done, total=total, count=count, left=left)
        if not self.console.is_terminal and not self.quiet and now >= self._line_at:
            self._line_at = now + LINES_EVERY
            self.console.print(f"{self._text}: {count}{', ' if left else ''}{left}")

    def note(self, text: str) -> None:
        """Print a note above the bars."""
        if self.quiet:
            return
        self.console.print(f"note: {text}")

    def row(self, row: Row) -> None:
        """Print a finished trial's metric, sparsity and settings above the bars."""
        if self.quiet:
            return
        settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        self.console.print(
            f"{row['metric']} {row['value']:.2%} ({row['low']:.1%} to {row['high']:.1%}), "
            f"sparsity {row['actual_sparsity']:.2%}, {row['seconds']:.1f} s   {settings}"
        )
