"""Where models could run, as a table and as a chart: a row for each model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.table import Table

from hfcompress.report.plotting import INK, new_figure, png_bytes
from hfcompress.report.rows import Row
from hfcompress.report.table import plain_text

_YES, _NO = "#CFE8DF", "#F6D9C6"
_WRAP = 24


def draw_feasibility(rows: Sequence[Row]) -> bytes:
    """`feasibility_figure` as PNG."""
    return png_bytes(feasibility_figure(rows))


def feasibility_figure(rows: Sequence[Row]) -> Figure:
    """One cell for each model and place: "fits", or what speaks against it.

    Args:
        rows: of `hfcompress.feasibility`, as plain data.
    """
    places = list(rows[0]["verdicts"]) if rows else []
    figure = new_figure(2.6 + 1.75 * len(places), 0.9 + 1.0 * len(rows))
    axes = figure.add_subplot()
    for line, row in enumerate(rows):
        for column, place in enumerate(places):
            reasons = row["verdicts"][place]
            axes.add_patch(
                Rectangle((column, line), 1, 1, facecolor=_NO if reasons else _YES, edgecolor="w")
            )
            text = "\n".join("\n".join(textwrap.wrap(item, _WRAP)) for item in reasons) or "fits"
            axes.text(
                column + 0.5, line + 0.5, text, ha="center", va="center", color=INK,
                fontsize=6.5 if reasons else 10,
            )  # fmt: skip
    axes.set_xlim(0, max(len(places), 1))
    axes.set_ylim(max(len(rows), 1), 0)
    axes.set_xticks([index + 0.5 for index in range(len(places))], places)
    labels = ["\n".join([*textwrap.wrap(row["model"], _WRAP), row["engine"]]) for row in rows]
    axes.set_yticks([index + 0.5 for index in range(len(rows))], labels)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def feasibility_table(rows: Sequence[Row]) -> Table:
    """What each model needs, and the places that have it.

    Args:
        rows: of `hfcompress.feasibility`, as plain data.
    """
    table = Table(
        caption="ms and memory: measured on this machine, one example on one thread; mJ: an "
        "estimate from operations and bytes in a 45 nm process (Horowitz 2014)",
        caption_justify="left",
    )
    for title in ("model", "engine", "MB", "memory MB", "ms", "M MACs", "mJ", "fits", "does not"):
        table.add_column(
            title, overflow="fold",
            justify="left" if title in {"model", "engine", "fits", "does not"} else "right",
        )  # fmt: skip
    for row in rows:
        places = row["verdicts"].items()
        cells = (
            row["model"],
            row["engine"],
            f"{row['bytes'] / 1e6:.2f}",
            _figure(row["memory"], 1e6, 1),
            f"{row['milliseconds']:.2f}",
            _figure(row["macs"], 1e6, 1),
            _figure(row["millijoules"], 1, 2),
            ", ".join(place for place, reasons in places if not reasons) or "nowhere",
            "; ".join(f"{place}: {', '.join(found)}" for place, found in places if found),
        )
        table.add_row(*map(plain_text, cells))
    return table


def _figure(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"
