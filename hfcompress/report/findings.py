"""The sweet spot: how far a model can be pruned before the loss is more than noise."""

from __future__ import annotations

from collections.abc import Sequence

from hfcompress.report.rows import (
    Point,
    Row,
    compressed_points,
    dense_point,
    is_dense,
    is_percent,
    metric_of,
    metric_text,
    number,
    points_text,
)

SIGNIFICANCE = 0.05


def within_noise(point: Point, dense: Point) -> bool:
    """Whether a point's loss against the dense model is within noise.

    It is when nothing was lost, or when both hold: McNemar's p is at least 0.05, and the drop is
    no larger than half the width of the dense model's 95 % interval (of the point's own where the
    dense one is not known). A test that was not made does not count against the point, but with
    neither of them a loss cannot be called noise. Seeds: the drop is their mean, p their median.
    """
    drop = point.drop if point.drop is not None else dense.value - point.value
    if drop <= 0:
        return True
    half = dense.half_width if dense.half_width is not None else point.half_width
    if point.p is None and half is None:
        return False
    return (point.p is None or point.p >= SIGNIFICANCE) and (half is None or drop <= half)


def sweet_spot(rows: Sequence[Row]) -> Point | None:
    """The highest sparsity whose loss is within noise, of all methods.

    Within a method every lower sparsity that was measured must be within noise too, so that one
    lucky point beyond a clear loss is not taken for a sweet spot. Equal sparsities of two methods
    are decided by the value.

    Returns:
        The point, or None where there is no dense value or no point within noise.
    """
    dense = dense_point(rows)
    if dense is None:
        return None
    found: list[Point] = []
    for line in compressed_points(rows).values():
        for point in line:
            if not within_noise(point, dense):
                break
            found.append(point)
    return max(found, key=lambda point: (_place(point), point.value), default=None)


def _place(point: Point) -> float:
    # Methods reach the same request within a weight or so; that must not decide between them.
    return round(point.requested if point.requested is not None else point.sparsity, 4)


def sweet_spot_sentence(rows: Sequence[Row]) -> str:
    """The result of a sweep in one sentence."""
    metric, dense = metric_of(rows), dense_point(rows)
    measured = compressed_points(rows)
    if dense is None:
        return "No dense model was measured, so no loss can be judged."
    level = f"{metric} {metric_text(metric, dense.value)}"
    if not measured:
        return f"Only the dense model was measured: {level}."
    best = sweet_spot(rows)
    if best is None:
        return f"No measured sparsity stays within noise of the dense model ({level})."
    return (
        f"Sweet spot: {100 * best.sparsity:.1f} % sparsity with {best.method}: {metric} "
        f"{metric_text(metric, best.value)} against {metric_text(metric, dense.value)} dense, "
        f"{loss_text(metric, best, dense)}."
    )


def loss_text(metric: str, best: Point, dense: Point) -> str:
    """What a point loses against the dense model, beside the noise that it is judged by."""
    drop = best.drop if best.drop is not None else dense.value - best.value
    unit = " points" if is_percent(metric) else ""
    if drop <= 0:
        return "nothing lost"
    evidence = []
    half = dense.half_width if dense.half_width is not None else best.half_width
    if half is not None:
        evidence.append(f"noise ±{points_text(metric, half)[1:]}")
    if best.p is not None:
        evidence.append(f"McNemar p = {best.p:.2f}")
    return f"a loss of {points_text(metric, drop).lstrip('+')}{unit} ({', '.join(evidence)})"


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
