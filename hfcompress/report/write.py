"""The files of a report, beside the rows they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcompress.files import atomic_write
from hfcompress.report.curve import draw_curve
from hfcompress.report.histograms import draw_weights, weight_panels
from hfcompress.report.html import html_page
from hfcompress.report.rows import Row
from hfcompress.report.table import write_csv


def write_report(
    rows: Sequence[Row],
    directory: str | Path,
    *,
    recipe_text: str | None = None,
    environment: Mapping[str, Any] | None = None,
    weights: Mapping[str, Mapping[str, Any]] | None = None,
    title: str = "Compression report",
) -> list[Path]:
    """Write ``results.csv``, ``curve.png``, ``weights.png`` and ``report.html``.

    Each file is replaced whole or not at all, so the report may be written after every row.

    Args:
        rows: any rows; partial ones and none at all are fine.
        directory: made where it is not there.
        recipe_text: the recipe as it was run.
        environment: names and values.
        weights: row hash -> histogram, as `weight_panels` takes them; without any that belongs
            to a row, a ``weights.png`` that is already there is kept and shown.
        title: heading of the page.

    Returns:
        The files written.

    Raises:
        OutputError: a file cannot be written.
        BadInputError: a histogram that does not fit itself.
    """
    directory = Path(directory)
    curve = draw_curve(rows)
    panels = weight_panels(rows, weights or {})
    histograms = draw_weights(panels) if panels else None
    written = [write_csv(rows, directory / "results.csv")]
    written.append(atomic_write(directory / "curve.png", curve))
    if histograms is not None:
        written.append(atomic_write(directory / "weights.png", histograms))
    elif (directory / "weights.png").is_file():
        histograms = (directory / "weights.png").read_bytes()
    page = html_page(
        rows,
        title=title,
        curve=curve,
        weights=histograms,
        recipe_text=recipe_text,
        environment=environment,
    )
    written.append(atomic_write(directory / "report.html", page))
    return written
