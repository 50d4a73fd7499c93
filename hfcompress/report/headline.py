"""The result of a run in one sentence, whatever kind of rows it has."""

from __future__ import annotations

from collections.abc import Sequence

from hfcompress.report.findings import sweet_spot_sentence
from hfcompress.report.front import front_sentence, timed_points
from hfcompress.report.pipeline import is_pipeline, pipeline_sentence
from hfcompress.report.rows import Row
from hfcompress.report.scatter import size_sentence, teacher_parameters
from hfcompress.report.smallest import is_about_size, smallest_sentence


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
