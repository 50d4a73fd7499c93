"""Further pictures of a report, each with a heading and a caption of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfcompress.report.bars import BARS_CAPTION, draw_bars
from hfcompress.report.grids import GRIDS_CAPTION, draw_grids, grid_panels
from hfcompress.report.levels import LEVELS_CAPTION, draw_levels, level_panels
from hfcompress.report.pipeline import is_pipeline
from hfcompress.report.rows import Row, number


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
