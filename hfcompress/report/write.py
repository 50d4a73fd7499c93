"""The files of a report, beside the rows they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcompress.report.classes import draw_classes
from hfcompress.report.curve import draw_curve
from hfcompress.report.page import further_pictures, html_page
from hfcompress.report.rows import Row
from hfcompress.report.scatter import draw_front, draw_size, teacher_parameters, timed_points
from hfcompress.report.table import write_csv
from hfcompress.report.temperature import draw_temperatures, teacher_logits
from hfcompress.report.weights import draw_weights, weight_panels
from hfcompress.utils import atomic_write


def write_report(
    rows: Sequence[Row],
    directory: str | Path,
    *,
    recipe_text: str | None = None,
    environment: Mapping[str, Any] | None = None,
    weights: Mapping[str, Mapping[str, Any]] | None = None,
    title: str = "Compression report",
) -> list[Path]:
    """Write ``results.csv``, ``curve.png``, ``weights.png`` and ``report.html``; of students
    ``size.png`` and ``temperature.png`` too, of measured latencies ``front.png``, of more than
    two classes ``classes.png``, of a pipeline ``bars.png``, of weights ``grids.png`` and
    ``levels.png``.

    Each file is replaced whole or not at all, so the report may be written after every row.

    Args:
        rows: any rows; partial ones and none at all are fine.
        directory: made where it is not there.
        recipe_text: the recipe as it was run.
        environment: names and values.
        weights: row hash -> histogram, as `weight_panels` takes them, with ``grids`` and
            ``levels`` for further pictures; without any that belongs
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
    pictures = _about_students(rows)
    if timed_points(rows):
        pictures["front"] = draw_front(rows)
    by_class = draw_classes(rows)
    if by_class is not None:
        pictures["classes"] = by_class
    panels = weight_panels(rows, weights or {})
    histograms = draw_weights(panels) if panels else None
    written = [write_csv(rows, directory / "results.csv")]
    written.append(atomic_write(directory / "curve.png", curve))
    for name, picture in pictures.items():
        written.append(atomic_write(directory / f"{name}.png", picture))
    further = further_pictures(rows, weights or {})
    for item in further:
        written.append(atomic_write(directory / f"{item.name}.png", item.png))
    if histograms is not None:
        written.append(atomic_write(directory / "weights.png", histograms))
    elif (directory / "weights.png").is_file():
        histograms = (directory / "weights.png").read_bytes()
    page = html_page(
        rows,
        title=title,
        curve=curve,
        weights=histograms,
        size=pictures.get("size"),
        front=pictures.get("front"),
        temperature=pictures.get("temperature"),
        pictures=further,
        classes=pictures.get("classes"),
        recipe_text=recipe_text,
        environment=environment,
    )
    written.append(atomic_write(directory / "report.html", page))
    return written


def _about_students(rows: Sequence[Row]) -> dict[str, bytes]:
    """Pictures of rows that were distilled: accuracy against size, and softmax by temperature."""
    if teacher_parameters(rows) is None:
        return {}
    pictures = {"size": draw_size(rows)}
    logits = teacher_logits(rows)
    if logits is not None:
        pictures["temperature"] = draw_temperatures(logits)
    return pictures
