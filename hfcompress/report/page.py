"""One HTML page that holds everything: no other file, no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hfcompress.report.classes import class_sentence, class_table
from hfcompress.report.curve import draw_curve
from hfcompress.report.findings import is_about_size, smallest_sentence, sweet_spot_sentence
from hfcompress.report.pipeline import (
    BARS_CAPTION,
    draw_bars,
    is_pipeline,
    pipeline_sentence,
    pipeline_table,
)
from hfcompress.report.rows import Row, metric_of, number
from hfcompress.report.scatter import (
    front_sentence,
    size_sentence,
    teacher_parameters,
    timed_points,
)
from hfcompress.report.table import result_table
from hfcompress.report.weights import (
    GRIDS_CAPTION,
    LEVELS_CAPTION,
    draw_grids,
    draw_levels,
    grid_panels,
    level_panels,
)


def html_page(
    rows: Sequence[Row],
    *,
    title: str = "Compression report",
    curve: bytes | None = None,
    weights: bytes | None = None,
    size: bytes | None = None,
    front: bytes | None = None,
    temperature: bytes | None = None,
    pictures: Sequence[Picture] = (),
    classes: bytes | None = None,
    recipe_text: str | None = None,
    environment: Mapping[str, Any] | None = None,
) -> str:
    """The report as one self-contained page, light or dark as the reader's system is.

    Args:
        rows: any rows; partial ones and none at all are fine.
        title: heading of the page.
        curve: the PNG of `draw_curve`; drawn anew where it is not given.
        weights: the PNG of `draw_weights`; left out where it is not given.
        size: the PNG of `draw_size`; given, it stands in the curve's place.
        front: the PNG of `draw_front`; given, it stands in the curve's place.
        temperature: the PNG of `draw_temperatures`; left out where it is not given.
        pictures: further ones, each with a heading and a caption.
        classes: the PNG of `draw_classes`; left out where it is not given.
        recipe_text: the recipe as it was run.
        environment: names and values; nested mappings are written with dotted names.
    """
    folder = FileSystemLoader(Path(__file__).parent)
    template = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("page.html")
    return template.render(
        title=title,
        headline=headline(rows),
        metric=metric_of(rows).replace("_", " "),
        curve=_data_uri(draw_curve(rows) if curve is None else curve),
        table=result_table(rows),
        pipeline=pipeline_table(rows) if is_pipeline(rows) else None,
        weights=None if weights is None else _data_uri(weights),
        size=None if size is None else _data_uri(size),
        front=None if front is None else _data_uri(front),
        temperature=None if temperature is None else _data_uri(temperature),
        pictures=[(picture, _data_uri(picture.png)) for picture in pictures],
        classes=None if classes is None else _data_uri(classes),
        class_sentence=class_sentence(rows),
        class_lines=class_table(rows),
        recipe=recipe_text,
        environment=flat_environment(environment or {}),
    )


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def flat_environment(environment: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested names and values as one level with dotted names; None is left out."""
    flat: dict[str, str] = {}
    for name, value in environment.items():
        if isinstance(value, Mapping):
            flat.update(flat_environment(value, f"{prefix}{name}."))
        elif value is not None:
            flat[f"{prefix}{name}"] = str(value)
    return flat


@dataclass(frozen=True)
class Picture:
    """A PNG, and what stands around it on the page."""

    name: str
    title: str
    png: bytes
    caption: str


def further_pictures(
    rows: Sequence[Row], weights: Mapping[str, Mapping[str, Any]]
) -> list[Picture]:
    """Those that the rows have something for.

    Args:
        rows: any rows.
        weights: row hash -> what a run keeps of its weights.
    """
    found = []
    measured = [row for row in rows if number(row, "value") and number(row, "bytes")]
    if is_pipeline(measured):
        found.append(Picture("bars", "Kept and saved", draw_bars(measured), BARS_CAPTION))
    panels = grid_panels(rows, weights)
    if panels:
        png = draw_grids(panels)
        found.append(Picture("grids", "Weights at each sparsity", png, GRIDS_CAPTION))
    layers = level_panels(rows, weights)
    if layers:
        png = draw_levels(layers)
        found.append(Picture("levels", "Weights in fp32 and in int8", png, LEVELS_CAPTION))
    return found


def headline(rows: Sequence[Row]) -> str:
    """What a reader wants to know first.

    A pipeline's end, the smallest student, the fastest model, the smallest file or the highest
    sparsity: what the rows are about.
    """
    if is_pipeline(rows):
        return pipeline_sentence(rows)
    if teacher_parameters(rows) is not None:
        return size_sentence(rows)
    if timed_points(rows):
        return front_sentence(rows)
    if is_about_size(rows):
        return smallest_sentence(rows)
    return sweet_spot_sentence(rows)
