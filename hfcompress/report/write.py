"""Write the files of a report into the folder of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hfcompress.report.csv_table import write_csv
from hfcompress.report.page import draw_pictures, histogram_picture, html_page, markdown_page
from hfcompress.report.rows import Row, is_failed
from hfcompress.utils import atomic_write

PAGE = "report.html"


def write_report(
    rows: Sequence[Row],
    directory: str | Path,
    *,
    recipe_text: str | None = None,
    environment: Mapping[str, object] | None = None,
    weights: Mapping[str, Row] | None = None,
    title: str = "Compression report",
    shipped: str | None = None,
    lead: str | None = None,
    written_text: str | None = None,
) -> list[Path]:
    """Write ``results.csv``, ``report.html``, ``report.md`` and a PNG for each picture of the rows.

    The pictures are ``curve.png``, and depending on the rows ``size.png`` and ``temperature.png``
    (students), ``front.png`` (measured latencies), ``classes.png`` (more than two classes),
    ``weights.png``, ``grids.png`` and ``levels.png`` (weights), ``bars.png`` (a pipeline, which
    has no curve), ``pareto.png`` (several runs).

    Each file is written atomically, so a report can be written after every row.

    Args:
        rows: any rows, possibly partial; those of failed trials are named on the page.
        directory: created if missing.
        recipe_text: the recipe as it was run.
        environment: names and values.
        weights: row hash -> what a run keeps of its weights, as `report.weights` describes;
            without histograms of these rows, an existing ``weights.png`` is kept and shown.
        title: heading of the page.
        shipped: hash of the row whose model a search has chosen.
        written_text: the recipe as its author wrote it.
        lead: the main result, where the rows' own headline does not say it.

    Returns:
        The files written.

    Raises:
        OutputError: a file cannot be written.
        BadInputError: a histogram whose edges do not match its counts.
    """
    directory = Path(directory)
    written = [write_csv(rows, directory / "results.csv")]
    failures = [row for row in rows if is_failed(row)]
    rows = [row for row in rows if not is_failed(row)]
    pictures = draw_pictures(rows, weights or {}, shipped)
    for name, picture in pictures.items():
        written.append(atomic_write(directory / f"{name}.png", picture.png))
    earlier = directory / "weights.png"
    if "weights" not in pictures and earlier.is_file():
        pictures["weights"] = histogram_picture(earlier.read_bytes())
    page = html_page(
        rows, title=title, pictures=pictures, recipe_text=recipe_text, environment=environment,
        failures=failures, shipped=shipped, lead=lead, written_text=written_text,
    )  # fmt: skip
    written.append(atomic_write(directory / PAGE, page))
    text = markdown_page(rows, title=title, failures=failures, pictures=list(pictures), lead=lead)
    written.append(atomic_write(directory / "report.md", text))
    if "curve" not in pictures:  # an older report's, of rows that are not a curve
        (directory / "curve.png").unlink(missing_ok=True)
    return written
