"""Accuracy by class, dense beside compressed: where a loss that looks small on average falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from matplotlib.figure import Figure

from hfcompress.report.findings import sweet_spot
from hfcompress.report.plotting import GREY, PALETTE, new_figure, png_bytes, tidy
from hfcompress.report.rows import Row, is_dense, number

# Classes that a picture and a table have room for; of more, those that lose most.
SHOWN = 20
_NAMED = 3
# A class is said to lose where chance alone hardly makes it lose so much.
_ERRORS = 2.0


@dataclass(frozen=True)
class ClassLoss:
    """One class: its examples, and the share of them that each model gets right (0 to 1)."""

    name: str
    n: int
    dense: float
    value: float

    @property
    def drop(self) -> float:
        """What the compressed model loses."""
        return self.dense - self.value

    @property
    def beyond_chance(self) -> bool:
        """Whether the drop is more than two standard errors of a difference of two shares."""
        spread = self.dense * (1 - self.dense) + self.value * (1 - self.value)
        return self.drop > _ERRORS * sqrt(max(spread, 1 / self.n) / self.n)


def class_losses(row: Row) -> list[ClassLoss]:
    """The classes of a row, in their own order; none where it holds none."""
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
    """The row whose classes are shown: at the sweet spot, or else the one that loses least."""
    known = [row for row in rows if class_losses(row) and not is_dense(row)]
    if not known:
        return None
    best = sweet_spot(rows)
    for row in known:
        method = str(row.get("method") or "compressed")
        if best and method == best.method and number(row, "requested_sparsity") == best.requested:
            return row
    return min(known, key=lambda row: number(row, "drop") or 0.0)


def row_name(row: Row) -> str:
    """What a row is called beside its picture."""
    method, sparsity = str(row.get("method") or "compressed"), number(row, "requested_sparsity")
    return f"{method}, {sparsity:.0%} sparsity" if sparsity else method


def class_sentence(rows: Sequence[Row]) -> str | None:
    """Which classes lose most, and how much that is beside the average; None without classes."""
    row = shown_row(rows)
    if row is None:
        return None
    losses = sorted(class_losses(row), key=lambda item: -item.drop)
    losing = [item for item in losses if item.beyond_chance][:_NAMED]
    right = sum(item.value * item.n for item in losses)
    before = sum(item.dense * item.n for item in losses)
    mean = 100 * (before - right) / sum(item.n for item in losses)
    whole = f"{row_name(row)} loses {_points(mean)} on average"
    if not losing:
        return f"No class loses more than chance explains; {whole}."
    named = ", ".join(
        f"{item.name} ({_points(100 * item.drop)}, {item.n:,} examples)" for item in losing
    )
    return f"The classes that lose most are {named}; {whole}."


def _points(value: float) -> str:
    return f"{value:.1f} points".replace("-", "−")


def class_table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Cells of each shown class: name, examples, dense, compressed, drop in points."""
    row = shown_row(rows)
    return [] if row is None else [
        (item.name, f"{item.n:,}", f"{item.dense:.1%}", f"{item.value:.1%}",
         f"{100 * item.drop:.1f}".replace("-", "−"))
        for item in _chosen(class_losses(row))
    ]  # fmt: skip


def worst_class(row: Row) -> str:
    """The class that loses most, as a cell: ``Shirt −4.1``; empty where none loses."""
    losses = class_losses(row)
    worst = max(losses, key=lambda item: item.drop, default=None)
    if worst is None or is_dense(row) or worst.drop <= 0:
        return ""
    return f"{worst.name} −{100 * worst.drop:.1f}"


def _chosen(losses: list[ClassLoss]) -> list[ClassLoss]:
    if len(losses) <= SHOWN:
        return losses
    return sorted(losses, key=lambda item: -item.drop)[:SHOWN]


def draw_classes(rows: Sequence[Row]) -> bytes | None:
    """The picture of `class_figure` as PNG; None where no row holds classes."""
    row = shown_row(rows)
    return None if row is None else png_bytes(class_figure(row))


def class_figure(row: Row) -> Figure:
    """Two bars a class, dense and compressed; of many classes those that lose most."""
    losses = _chosen(class_losses(row))
    figure = new_figure(max(6.0, 2.5 + 0.75 * len(losses)), 4.2)
    axes = figure.subplots()
    tidy(axes)
    width = 0.4
    places = range(len(losses))
    axes.bar([place - width / 2 for place in places], [100 * item.dense for item in losses],
             width, color=GREY, label="dense")  # fmt: skip
    axes.bar([place + width / 2 for place in places], [100 * item.value for item in losses],
             width, color=PALETTE[0], label=row_name(row))  # fmt: skip
    lowest = min((min(item.dense, item.value) for item in losses), default=0.0)
    axes.set_ylim(max(0.0, 100 * lowest - 15), 100)
    axes.set_xticks(places, [item.name for item in losses], rotation=30, ha="right")
    axes.set_ylabel("accuracy of the class, %")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9.5)
    return figure
