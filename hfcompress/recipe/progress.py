"""What a run tells while it works; the command line draws it, everyone else may ignore it."""

from __future__ import annotations

from typing import Any


class Progress:
    """Receives what happens; this base class keeps silent. Override what you want to show."""

    def sweep(self, done: int, total: int) -> None:
        """``done`` of ``total`` trials have a row."""

    def stage(self, text: str) -> None:
        """A new piece of work begins."""

    def work(self, done: int, total: int) -> None:
        """How far the piece of work is."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def row(self, row: dict[str, Any]) -> None:
        """A trial is finished."""
