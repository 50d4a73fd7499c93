"""What rows are called in tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hfcompress.recipes.grid import Trial
from hfcompress.steps.registry import kind_of


def line_label(trial: Trial, trials: Sequence[Trial] = (), every_step: bool = False) -> str:
    """What a trial's line in the plot is called.

    Its method, and the settings in which it differs from other trials of that method; sparsity
    and seed are points on the line.

    Args:
        trial: which.
        trials: all of its recipe.
        every_step: trials end in each of the recipe's steps; the method is the last step then.
    """
    name: Callable[[Trial], str] = _last_step if every_step else _method
    method = name(trial)
    others = [other.settings for other in trials if name(other) == method]
    parts = [method]
    for field_name, value in trial.settings.items():
        last = field_name.rpartition(".")[2]
        varies = not others or any(other.get(field_name) != value for other in others)
        if varies and last not in {"sparsity", "seed", "method", "targets"}:
            parts.append(f"{value}" if isinstance(value, str) else f"{last} {value}")
    return ", ".join(parts)


def _method(trial: Trial) -> str:
    compressing = [s for s in trial.steps if kind_of(s.config).compresses]
    if not compressing:
        return "dense"
    return str(getattr(compressing[-1].config, "method", compressing[-1].name))


def _last_step(trial: Trial) -> str:
    """The last step's name, numbered where the trial has several; before compression: dense."""
    if not any(kind_of(step.config).compresses for step in trial.steps):
        return "dense"
    last = trial.steps[-1].name
    count = sum(step.name == last for step in trial.steps)
    return last if count == 1 else f"{last} {count}"
