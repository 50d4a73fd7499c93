"""Accuracy per class, dense and compressed: which classes carry the drop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from matplotlib.figure import Figure

from hfcompress.report.findings import sweet_spot
from hfcompress.report.plotting import (
    GREY,
    add_legend,
    colour_of,
    new_figure,
    png_bytes,
    style_axes,
)
from hfcompress.report.rows import Row, is_dense, method_of, number

MAX_SHOWN = 20  # classes in figure and table; of more, those with the largest drop
_MAX_NAMED = 3  # classes in the sentence
_NOISE_ERRORS = 2.0  # a drop of more standard errors is not noise


@dataclass(frozen=True)
class ClassLoss:
    """One class: its number of examples, and the recall of each model (0 to 1)."""

    name: str
    n: int
    dense: float
    value: float

    @property
    def drop(self) -> float:
        """The dense model's recall minus the compressed one's."""
        return self.dense - self.value

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the drop exceeds two standard errors of the difference of two proportions."""
        spread = self.dense * (1 - self.dense) + self.value * (1 - self.value)
        return self.drop > _NOISE_ERRORS * sqrt(max(spread, 1 / self.n) / self.n)


def class_losses(row: Row) -> list[ClassLoss]:
    """The classes of a row, by class id; empty if the row has none."""
    found = []
    for entry in row.get("classes") or ():
        if not isinstance(entry, Mapping):
            continue
        values = [number(entry, key) for key in ("n", "dense", "value")]
        if None not in values and values[0]:
            n, dense, value = (float(part or 0) for part in values)
            found.append(ClassLoss(str(entry.get("name")), int(n), dense, value))
    return found


def shown_row(rows: Sequence[Row]) -> Row | None:
    """The row whose classes are shown: at the sweet spot, else the one with the smallest drop."""
    known = [row for row in rows if class_losses(row) and not is_dense(row)]
    if not known:
        return None
    best = sweet_spot(rows)
    for row in known:
        if (
            best
            and method_of(row) == best.method
            and number(row, "requested_sparsity") == best.requested
        ):
            return row
    return min(known, key=lambda row: number(row, "drop") or 0.0)


def class_sentence(rows: Sequence[Row], row: Row | None = None) -> str | None:
    """One sentence: the classes that lose most, and the mean drop; None without classes.

    Args:
        rows: any rows.
        row: the one whose classes are shown; by default `shown_row`.
    """
    row = row or shown_row(rows)
    if row is None or not class_losses(row):
        return None
    losses = sorted(class_losses(row), key=lambda item: -item.drop)
    losing = [item for item in losses if item.is_beyond_noise][:_MAX_NAMED]
    right = sum(item.value * item.n for item in losses)
    before = sum(item.dense * item.n for item in losses)
    mean = 100 * (before - right) / sum(item.n for item in losses)
    whole = f"{_row_name(row)} loses {_points(mean)} on average"
    if not losing:
        return f"No class loses more than noise explains; {whole}."
    named = ", ".join(
        f"{item.name} ({_points(100 * item.drop)}, {item.n:,} examples)" for item in losing
    )
    return f"The classes that lose most are {named}; {whole}."


def class_table(rows: Sequence[Row], row: Row | None = None) -> list[tuple[str, ...]]:
    """The cells of each shown class: name, examples, dense, compressed, drop in points.

    Args:
        rows: any rows.
        row: as in `class_sentence`.
    """
    row = row or shown_row(rows)
    return [] if row is None else [
        (item.name, f"{item.n:,}", f"{item.dense:.1%}", f"{item.value:.1%}",
         f"{100 * item.drop:.1f}".replace("-", "−"))
        for item in _shown_classes(class_losses(row))
    ]  # fmt: skip


def worst_class(row: Row) -> str:
    """The class with the largest drop, as a cell: ``Shirt −4.1``; empty without a drop."""
    losses = class_losses(row)
    worst = max(losses, key=lambda item: item.drop, default=None)
    if worst is None or is_dense(row) or worst.drop <= 0:
        return ""
    return f"{worst.name} −{100 * worst.drop:.1f}"


def draw_classes(rows: Sequence[Row], row: Row | None = None) -> bytes | None:
    """`class_figure` of the shown row as PNG; None without classes.

    Args:
        rows: any rows.
        row: as in `class_sentence`.
    """
    row = row or shown_row(rows)
    return None if row is None or not class_losses(row) else png_bytes(class_figure(row))


def class_figure(row: Row) -> Figure:
    """Two bars per class, dense and compressed; of many classes those with the largest drop."""
    losses = _shown_classes(class_losses(row))
    figure = new_figure(max(6.0, 2.5 + 0.75 * len(losses)), 4.2)
    axes = figure.subplots()
    style_axes(axes)
    width = 0.4
    places = range(len(losses))
    axes.bar([place - width / 2 for place in places], [100 * item.dense for item in losses],
             width, color=GREY, label="dense")  # fmt: skip
    axes.bar([place + width / 2 for place in places], [100 * item.value for item in losses],
             width, color=colour_of(0), label=_row_name(row))  # fmt: skip
    lowest = min((min(item.dense, item.value) for item in losses), default=0.0)
    axes.set_ylim(max(0.0, 100 * lowest - 15), 100)
    axes.set_xticks(places, [item.name for item in losses], rotation=30, ha="right")
    axes.set_ylabel("accuracy of the class (%)")
    add_legend(axes)
    return figure


def _row_name(row: Row) -> str:
    """The name of a row in the figure: its method and requested sparsity."""
    method, sparsity = method_of(row), number(row, "requested_sparsity")
    return f"{method}, {sparsity:.0%} sparsity" if sparsity else method


def _shown_classes(losses: list[ClassLoss]) -> list[ClassLoss]:
    if len(losses) <= MAX_SHOWN:
        return losses
    return sorted(losses, key=lambda item: -item.drop)[:MAX_SHOWN]


def _points(value: float) -> str:
    return f"{value:.1f} points".replace("-", "−")
