"""The report as one HTML page without other files or network, and the pictures in it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hfcompress.report.classes import class_sentence, class_table, draw_classes, shown_row
from hfcompress.report.curve import draw_curve
from hfcompress.report.findings import (
    chance_sentence,
    is_about_size,
    smallest,
    smallest_sentence,
    sweet_spot_sentence,
)
from hfcompress.report.glossary import meanings
from hfcompress.report.leading import MOST_ROWS, drawn_rows
from hfcompress.report.pipeline import (
    BARS_CAPTION,
    draw_bars,
    is_pipeline,
    pipeline_sentence,
    pipeline_table,
)
from hfcompress.report.points import Chart, chart_of
from hfcompress.report.rows import Row, metric_of, number, published_sentence
from hfcompress.report.scatter import (
    best_student,
    draw_size_front,
    draw_speedups,
    draw_students,
    fastest_row,
    speedup_sentence,
    student_sentence,
    teacher_parameters,
    timed_models,
)
from hfcompress.report.several import are_several
from hfcompress.report.table import markdown_table, markdown_text, result_table
from hfcompress.report.temperature import draw_temperatures, teacher_logits
from hfcompress.report.vectors import CAPTION, HEAD, stored_lines, stored_table
from hfcompress.report.weights import (
    GRIDS_CAPTION,
    LEVELS_CAPTION,
    draw_grids,
    draw_histograms,
    draw_levels,
    grid_panels,
    histogram_panels,
    level_layers,
)

_MOST_FAILURES = 100
_FOLDER = Path(__file__).parent
# The first one that the rows have is shown at the top of the page.
_TOP_PICTURES = ("size", "front", "curve", "bars")


@dataclass(frozen=True)
class Picture:
    """A PNG with the heading and caption that it has on the page.

    A caption that names colours (``names_colours``) keeps the dark page from turning them.
    """

    title: str
    caption: str
    png: bytes
    names_colours: bool = False

    @property
    def source(self) -> str:
        """The PNG as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def headline(rows: Sequence[Row]) -> str:
    """The main result in one sentence.

    Depending on the rows: the end of a pipeline, the smallest student, the fastest model, the
    smallest file or the highest sparsity. A second sentence says where the dense model is not
    above chance level.
    """
    return f"{_main_result(rows)} {chance_sentence(rows)}".strip()


def _main_result(rows: Sequence[Row]) -> str:
    if is_pipeline(rows):
        return pipeline_sentence(rows)
    if teacher_parameters(rows) is not None:
        return student_sentence(rows)
    if timed_models(rows):
        return speedup_sentence(rows)
    if is_about_size(rows):
        return smallest_sentence(rows)
    return sweet_spot_sentence(rows)


def shipped_row(rows: Sequence[Row], shipped: str | None = None) -> Row | None:
    """The row of the model that the headline names.

    Args:
        rows: any rows.
        shipped: hash of the row whose model a search has chosen.
    """
    for row in rows:
        if shipped is not None and row.get("hash") == shipped:
            return row
    if is_pipeline(rows):
        return rows[-1]
    if teacher_parameters(rows) is not None:
        return best_student(rows)
    if timed_models(rows):
        return fastest_row(rows)
    place = smallest(rows) if is_about_size(rows) else None
    return shown_row(rows) if place is None else rows[place]


def draw_pictures(
    rows: Sequence[Row], weights: Mapping[str, Row], shipped: str | None = None
) -> dict[str, Picture]:
    """File name without ending -> each picture that the rows have data for.

    Args:
        rows: any rows.
        weights: row hash -> what a run keeps of its weights, as `report.weights` describes.
        shipped: as in `shipped_row`.

    Raises:
        BadInputError: a histogram whose edges do not match its counts.
    """
    metric = metric_of(rows).replace("_", " ")
    drawn, pictures = drawn_rows(rows), {}
    some = f"; {len(drawn):,} of {len(rows):,} rows" if len(drawn) < len(rows) else ""
    if not is_pipeline(rows):  # the steps of a pipeline are not points of one curve
        caption = f"{metric} against sparsity, one line per method{some}"
        pictures["curve"] = Picture("", caption, draw_curve(drawn))
    if teacher_parameters(rows) is not None:
        caption = f"{metric} against the number of parameters, one point per student{some}"
        pictures["size"] = Picture("", caption, draw_students(drawn))
    if timed_models(rows):
        caption = f"{metric} against measured speedup, with the Pareto front{some}"
        pictures["front"] = Picture("", caption, draw_speedups(drawn))
    if are_several(rows):
        caption = f"{metric} against the size of the files, with the Pareto front{some}"
        title = "Metric and size"
        pictures["pareto"] = Picture(title, caption, draw_size_front(drawn))
        return pictures
    classes = draw_classes(rows, shipped_row(rows, shipped))
    if classes is not None:
        pictures["classes"] = Picture("", "accuracy of each class, dense and compressed", classes)
    return pictures | _weight_pictures(rows, weights) | _teacher_pictures(rows)


def histogram_picture(png: bytes) -> Picture:
    """The weight histograms, drawn now or by an earlier report."""
    caption = (
        "Histograms of the weights before and after compression (in a pipeline: before and after "
        "the step); zeros are a separate bar."
    )
    return Picture("Weights before and after", caption, png)


def _weight_pictures(rows: Sequence[Row], weights: Mapping[str, Row]) -> dict[str, Picture]:
    pictures = {}
    histograms = histogram_panels(rows, weights)
    if histograms:
        pictures["weights"] = histogram_picture(draw_histograms(histograms))
    measured = [row for row in rows if number(row, "value") and number(row, "bytes")]
    if is_pipeline(measured):
        pictures["bars"] = Picture("Metric and size by step", BARS_CAPTION, draw_bars(measured))
    grids = grid_panels(rows, weights)
    if grids:
        png = draw_grids(grids)
        pictures["grids"] = Picture("Weights at each sparsity", GRIDS_CAPTION, png, True)
    layers = level_layers(rows, weights)
    if layers:
        png = draw_levels(layers)
        pictures["levels"] = Picture("Weights in fp32 and in int8", LEVELS_CAPTION, png)
    return pictures


def _teacher_pictures(rows: Sequence[Row]) -> dict[str, Picture]:
    logits = teacher_logits(rows) if teacher_parameters(rows) is not None else None
    if logits is None:
        return {}
    caption = (
        "The teacher's probabilities for some of the measured examples. Higher temperatures reveal "
        "the relative probabilities of the other classes, which a label does not contain."
    )
    picture = Picture("The teacher's softmax by temperature", caption, draw_temperatures(logits))
    return {"temperature": picture}


def html_page(
    rows: Sequence[Row],
    *,
    title: str = "Compression report",
    pictures: Mapping[str, Picture] | None = None,
    recipe_text: str | None = None,
    environment: Mapping[str, object] | None = None,
    failures: Sequence[Row] = (),
    shipped: str | None = None,
    lead: str | None = None,
    written_text: str | None = None,
) -> str:
    """The report as one self-contained page, light or dark as the reader's system is.

    Args:
        rows: any rows, possibly partial.
        title: heading of the page.
        pictures: as `draw_pictures` returns them; by default those that need the rows alone.
        recipe_text: the recipe as it was run.
        written_text: the recipe as its author wrote it.
        environment: names and values; nested mappings become dotted names.
        failures: rows of trials that failed.
        shipped: as in `shipped_row`.
        lead: the main result, where `headline` of the rows does not say it.
    """
    row = shipped_row(rows, shipped)
    pictures = draw_pictures(rows, {}, shipped) if pictures is None else pictures
    loader = FileSystemLoader(_FOLDER)
    pages = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )  # fmt: skip
    pages.policies["json.dumps_kwargs"] = {}  # the chart's groups stay in the rows' order
    template = pages.get_template("page.html")
    table = result_table(rows, MOST_ROWS)
    chart = None if is_pipeline(rows) else chart_of(table.rows)
    top = next((name for name in _TOP_PICTURES if name in pictures), None)
    placed = {*_TOP_PICTURES[:3], "classes", top}
    return template.render(
        title=title,
        headline=headline(rows) if lead is None else lead,
        failed=failure_sentence(len(failures), len(rows) + len(failures)),
        failures=_failure_lines(failures),
        metric=metric_of(rows).replace("_", " "),
        top=None if top is None else pictures[top],
        table=table,
        meanings=meanings(table.titles, metric_of(rows)),
        chart=chart,
        chart_text="" if chart is None else chart_text(chart),
        style=_asset("page.css"),
        script=_asset("page.js"),
        plotting_script=_asset("uplot.js"),
        pipeline=pipeline_table(rows) if is_pipeline(rows) else None,
        pictures=[picture for name, picture in pictures.items() if name not in placed],
        classes=pictures.get("classes"),
        class_sentence=class_sentence(rows, row),
        class_lines=class_table(rows, row),
        stored_head=HEAD,
        stored_lines=stored_lines(rows),
        stored_caption=CAPTION,
        published=published_sentence(rows),
        recipe=recipe_text,
        written=written_text,
        environment=flat_environment(environment or {}),
    )


def markdown_page(
    rows: Sequence[Row],
    *,
    title: str,
    failures: Sequence[Row] = (),
    pictures: Sequence[str] = (),
    lead: str | None = None,
) -> str:
    """The report as Markdown for a pull request: the headline, the table, the pictures' names.

    Args:
        rows: any rows, possibly partial.
        title: its heading.
        failures: rows of trials that failed.
        pictures: names of the PNGs beside it, without ending.
        lead: as in `html_page`.
    """
    failed = failure_sentence(len(failures), len(rows) + len(failures))
    lead = headline(rows) if lead is None else lead
    parts = [f"# {markdown_text(title)}", markdown_text(failed), markdown_text(lead)]
    parts += [f"![{name}]({name}.png)" for name in pictures if name in _TOP_PICTURES[:3]]
    parts += [markdown_table(rows), stored_table(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def chart_text(chart: Chart) -> str:
    """What the chart shows, for those who do not see it."""
    values = [point["value"] for point in chart["points"]]
    return (
        f"{chart['metric']} of {len(values)} models against {chart['axes'][0]['title']}, from "
        f"{min(values):.1f} to {max(values):.1f}; the table below has every value"
    )


def _asset(name: str) -> Markup:
    text = (_FOLDER / "assets" / name).read_text(encoding="utf-8")
    return Markup(text)  # nosec B704 # ours, not a reader's


def failure_sentence(failed: int, trials: int) -> str:
    """One sentence: how many trials failed; empty where none did."""
    if not failed:
        return ""
    return f"{failed} of {trials} trials failed; what is said here is about the others."


def _failure_lines(failures: Sequence[Row]) -> list[tuple[str, str]]:
    """Settings and reason of trials that failed; of many the first ones, and how many more."""
    shown = failures[:_MOST_FAILURES]
    lines = [(_settings_text(row), str(row.get("reason") or "")) for row in shown]
    more = len(failures) - len(shown)
    return [*lines, (f"{more:,} more", "results.csv has all")] if more else lines


def _settings_text(row: Row) -> str:
    settings = row.get("settings") or {}
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "the only trial"


def flat_environment(environment: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested names and values as one level with dotted names, without None."""
    flat: dict[str, str] = {}
    for name, value in environment.items():
        if isinstance(value, Mapping):
            flat.update(flat_environment(value, f"{prefix}{name}."))
        elif value is not None:
            flat[f"{prefix}{name}"] = str(value)
    return flat
