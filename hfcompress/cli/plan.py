"""``hfcompress run --dry-run``: the plan of a run as lines and a table."""

from __future__ import annotations

from rich.table import Table

from hfcompress.sweep.plan import Plan

_MOST_LINES = 50


def settings_lines(found: Plan) -> list[str]:
    """A line for each trial to run; of many the first ones, and how many more there are."""
    lines = [
        ", ".join(f"{field}={value}" for field, value in settings.items()) or "the only trial"
        for settings in found.pending[:_MOST_LINES]
    ]
    more = len(found.pending) - len(lines)
    return [*lines, f"... and {more:,} more"] if more else lines


def plan_table(found: Plan) -> Table:
    """A row for each step: trials, models to make, how many are kept, seconds of training."""
    table = Table()
    table.add_column("step")
    for column in ("trials", "models", "kept already", "training, s"):
        table.add_column(column, justify="right")
    for step in found.steps:
        seconds = "unknown" if step.seconds is None else f"{step.seconds:.1f}"
        counts = (step.trials, step.models, step.kept)
        table.add_row(step.name, *(f"{count:,}" for count in counts), seconds)
    return table
