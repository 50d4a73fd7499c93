"""The smallest model whose loss is within noise, of rows that asked for no sparsity."""

from __future__ import annotations

from collections.abc import Sequence

from hfcompress.report.findings import loss_text, within_noise
from hfcompress.report.rows import (
    Point,
    Row,
    compressed_points,
    dense_point,
    is_dense,
    metric_of,
    metric_text,
    number,
)


def is_about_size(rows: Sequence[Row]) -> bool:
    """Whether rows differ by the size of their files alone: none of them asked for a sparsity."""
    made = [row for row in rows if not is_dense(row)]
    return (
        bool(made)
        and all(number(row, "requested_sparsity") is None for row in made)
        and any(number(row, "bytes") is not None for row in made)
    )


def smallest(rows: Sequence[Row]) -> int | None:
    """The place of the row with the smallest files among those within noise of the dense model.

    Of equal sizes the one with the higher value. None where no row is within noise, or the dense
    model's value is not known.
    """
    dense, found = dense_point(rows), []
    for place, row in enumerate(rows):
        size, point = number(row, "bytes"), point_of(row)
        if size is None or point is None or dense is None or not within_noise(point, dense):
            continue
        found.append((size, -point.value, place))
    return min(found)[2] if found else None


def smallest_sentence(rows: Sequence[Row]) -> str:
    """What `smallest` found, in one sentence."""
    metric, dense, place = metric_of(rows), dense_point(rows), smallest(rows)
    if dense is None:
        return "No dense model was measured, so no loss can be judged."
    level = metric_text(metric, dense.value)
    if place is None:
        return f"No model here stays within noise of the dense model ({metric} {level})."
    point = point_of(rows[place])
    assert point is not None
    return (
        f"Smallest within noise: {rows[place].get('method') or 'compressed'}, "
        f"{(number(rows[place], 'bytes') or 0) / 1e6:,.1f} MB: {metric} "
        f"{metric_text(metric, point.value)} against {level} dense, "
        f"{loss_text(metric, point, dense)}."
    )


def point_of(row: Row) -> Point | None:
    """A single row as a point; None for the dense model and where no value is known."""
    points = [point for line in compressed_points([row]).values() for point in line]
    return points[0] if points else None
