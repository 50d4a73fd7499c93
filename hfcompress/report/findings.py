"""The result of a sweep: the sweet spot, or the smallest model, within noise of the dense model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hfcompress.report.rows import (
    Point,
    Row,
    compressed_points,
    dense_point,
    is_below_chance,
    is_dense,
    is_percent,
    method_of,
    metric_of,
    metric_text,
    number,
    point_of,
    points_and_rows,
    points_text,
)

SIGNIFICANCE = 0.05


def within_noise(point: Point, dense: Point) -> bool:
    """Whether a point is the dense model up to noise.

    The dense model must be above chance level, the point above it, too, and the two must agree;
    otherwise an equal metric is luck. Then true without a drop, or if both hold: McNemar's p is at
    least 0.05, and the drop is at most half the width of the dense model's 95 % interval (of the
    point's own if that is unknown). A missing test is skipped; without either test a drop is not
    noise. Over seeds, the drop is the mean and p the median.
    """
    drop, half = _drop(point, dense), _half_width(point, dense)
    above = point.chance is None or point.value > point.chance
    if not (above and is_above_chance(dense, half) and agrees(point)):
        return False
    if drop <= 0:
        return True
    if point.p is None and half is None:
        return False
    return (point.p is None or point.p >= SIGNIFICANCE) and (half is None or drop <= half)


def is_above_chance(dense: Point, half_width: float | None = None) -> bool:
    """Whether the low end of a dense model's 95 % interval is above always answering one class.

    Args:
        dense: the dense model; one of an unknown chance level counts as above it.
        half_width: of the interval, where the dense model's own is unknown.
    """
    low = dense.value - (half_width or 0.0) if dense.low is None else dense.low
    return dense.chance is None or low > dense.chance


def agrees(point: Point) -> bool:
    """Whether a point answers as the dense model on more than half of the examples on which it
    could differ from always answering the most frequent class; true where that is unknown."""
    majority = 0.5 if point.majority is None else point.majority
    return point.agreement is None or point.agreement >= (1 + majority) / 2


def chance_sentence(rows: Sequence[Row]) -> str:
    """One sentence where the dense model is not above chance level; else empty."""
    metric, dense = metric_of(rows), dense_point(rows)
    if dense is None or dense.chance is None or is_above_chance(dense):
        return ""
    if any(is_below_chance(row) for row in rows if is_dense(row)):
        return (
            f"The dense model is below chance level ({metric} {metric_text(metric, dense.value)}): "
            f"labels may be swapped."
        )
    return (
        f"The dense model is not above chance level ({metric} {metric_text(metric, dense.value)}, "
        f"and {metric_text(metric, dense.chance)} by always answering one class), so no loss can "
        f"be judged."
    )


def sweet_spot(rows: Sequence[Row]) -> Point | None:
    """The point of the highest sparsity within noise of the dense model, over all methods.

    All lower measured sparsities of its method must be within noise too, so that one lucky point
    beyond a clear loss does not count. Ties between methods are decided by the metric.

    Where every row also has its metric on rows to choose on (``data.choose``), these decide, so
    that the point is not reported on the rows that made it look best.

    Returns:
        The point as measured; None without a dense value or a point within noise.
    """
    judged = _rows_to_choose_on(rows)
    best = _sweet_spot(judged or rows)
    if best is None or judged is None:
        return best
    points = compressed_points(rows)[best.method]
    return next(point for point in points if point.requested == best.requested)


def _rows_to_choose_on(rows: Sequence[Row]) -> list[Row] | None:
    """The rows with their metrics on the rows to choose on; None where one has none."""
    chosen = [row.get("choice") for row in rows]
    if not all(chosen):
        return None
    return [{**row, **choice} for row, choice in zip(rows, chosen, strict=True) if choice]


def _sweet_spot(rows: Sequence[Row]) -> Point | None:
    dense = dense_point(rows)
    return None if dense is None else _furthest(compressed_points(rows).values(), dense)


def _furthest(lines: Iterable[Sequence[Point]], dense: Point) -> Point | None:
    found: list[Point] = []
    for line in lines:
        for point in line:
            if not within_noise(point, dense):
                break
            found.append(point)
    return max(found, key=lambda point: (_comparable_sparsity(point), point.value), default=None)


def sweet_spot_sentence(rows: Sequence[Row]) -> str:
    """One sentence: the sweet spot and its drop, or why there is none."""
    metric, dense = metric_of(rows), dense_point(rows)
    measured = compressed_points(rows)
    if dense is None:
        return "No dense model was measured, so no drop can be judged."
    level = f"{metric} {metric_text(metric, dense.value)}"
    if not measured:
        return f"Only the dense model was measured: {level}."
    best = sweet_spot(rows)
    if best is None:
        return f"No measured sparsity stays within noise of the dense model ({level}){_why(rows)}."
    return (
        f"Sweet spot: {100 * best.sparsity:.1f} % sparsity with {best.method}: {metric} "
        f"{metric_text(metric, best.value)} against {metric_text(metric, dense.value)} dense, "
        f"{_loss_text(metric, best, dense)}{_chosen_text(rows)}."
    )


def _chosen_text(rows: Sequence[Row]) -> str:
    """How many rows the point was chosen on, or among how many on the measured ones."""
    judged = _rows_to_choose_on(rows)
    if judged:
        return f" (chosen on {judged[0]['n']:,} rows of their own)"
    count = sum(map(len, compressed_points(rows).values()))
    if count == 1:
        return ""
    lost = cross_validated_loss(rows)
    if lost is None:
        return f" (the best of {count} on these rows, which flatters it; data.choose keeps others)"
    metric = metric_of(rows)
    change = "nothing" if lost <= 0 else f"{points_text(metric, lost).lstrip('+')} points"
    return (
        f" (the best of {count}: chosen on nine tenths of the rows and measured on the rest, it "
        f"loses {change})"
    )


def cross_validated_loss(rows: Sequence[Row]) -> float | None:
    """What the choice of the sweet spot loses on rows that it was not chosen on.

    Each tenth of the measured rows is answered by the point that is the sweet spot of the other
    nine, the dense model where they have none; the loss against the dense model is averaged over
    all rows (cross-validation, Stone 1974). It belongs to the choice among these rows' trials; the
    sweet spot's own drop is the smaller the more trials it was the best of.

    Returns:
        The loss as a fraction; None where a row has no counts for each tenth (metrics other than
        accuracy), or no dense row was measured.
    """
    table = [row.get("folds") for row in rows]
    if not all(table) or len({str(found["n"]) for found in table if found}) != 1:
        return None
    names = ("n", "right", "agree", "lost", "gained")
    counts = np.array([[found[name] for name in names] for found in table if found])
    sizes, dense = counts[0, 0], dense_point(rows)
    own = [place for place, row in enumerate(rows) if is_dense(row)]
    if not sizes.all() or dense is None or not own:  # fewer rows than folds
        return None
    lines, lost = points_and_rows(rows), 0.0
    for fold in range(len(sizes)):
        others = np.delete(counts, fold, axis=2).sum(axis=2)
        parts = [
            [(_measured_by(point, others[members]), members) for point, members in line]
            for line in lines.values()
        ]
        best = _furthest(
            [[point for point, _ in line] for line in parts], _measured_by(dense, others[own])
        )
        if best is not None:
            (members,) = [found for line in parts for point, found in line if point is best]
            lost += float((counts[members, 3, fold] - counts[members, 4, fold]).mean())
    return lost / int(sizes.sum())


def _measured_by(point: Point, counts: NDArray[np.int64]) -> Point:
    """A point as some of the examples measure it; ``counts``: [its rows, n right agree ...]."""
    from scipy.special import bdtr  # binom.cdf, without the time that it takes to be called

    n, right, agree, lost, gained = counts.T
    p_values = np.minimum(1.0, 2 * bdtr(np.minimum(lost, gained), lost + gained, 0.5))
    value = float((right / n).mean())
    low, high = (
        None if end is None else end + value - point.value for end in (point.low, point.high)
    )
    return replace(
        point, value=value, low=low, high=high, drop=float(((lost - gained) / n).mean()),
        p=float(np.median(p_values)), agreement=float((agree / n).mean()),
    )  # fmt: skip


def is_about_size(rows: Sequence[Row]) -> bool:
    """Whether rows compare file sizes: none requests a sparsity, and some have a size."""
    compressed = [row for row in rows if not is_dense(row)]
    return (
        bool(compressed)
        and all(number(row, "requested_sparsity") is None for row in compressed)
        and any(number(row, "bytes") is not None for row in compressed)
    )


def smallest(rows: Sequence[Row]) -> int | None:
    """The index of the row with the smallest files within noise of the dense model.

    Ties are decided by the metric. None if no row is within noise, or without a dense value.
    """
    dense, found = dense_point(rows), []
    for place, row in enumerate(rows):
        size, point = number(row, "bytes"), point_of(row)
        if size is None or point is None or dense is None or not within_noise(point, dense):
            continue
        found.append((size, -point.value, place))
    return min(found)[2] if found else None


def smallest_sentence(rows: Sequence[Row]) -> str:
    """One sentence: the row found by `smallest` and its drop, or why there is none."""
    metric, dense, place = metric_of(rows), dense_point(rows), smallest(rows)
    if dense is None:
        return "No dense model was measured, so no drop can be judged."
    level = metric_text(metric, dense.value)
    if place is None:
        return (
            f"No measured model stays within noise of the dense model ({metric} {level})"
            f"{_why(rows)}."
        )
    point = point_of(rows[place])
    assert point is not None
    return (
        f"Smallest within noise: {method_of(rows[place])}, "
        f"{(number(rows[place], 'bytes') or 0) / 1e6:,.1f} MB: {metric} "
        f"{metric_text(metric, point.value)} against {level} dense, "
        f"{_loss_text(metric, point, dense)}."
    )


def _why(rows: Sequence[Row]) -> str:
    """Where an equal metric does not count because the models do not agree: that, in words."""
    points = [point for line in compressed_points(rows).values() for point in line]
    apart = [point for point in points if (point.drop or 0.0) <= 0 and not agrees(point)]
    if not apart:
        return ""
    most = max(point.agreement or 0.0 for point in apart)
    return f": one of equal {metric_of(rows)} answers as it does on {100 * most:.0f} % only"


def _comparable_sparsity(point: Point) -> float:
    # Methods miss the requested sparsity by a few weights, which must not decide between them.
    return round(point.requested if point.requested is not None else point.sparsity, 4)


def _loss_text(metric: str, best: Point, dense: Point) -> str:
    """The drop against the dense model, with the evidence that it is noise."""
    drop, half = _drop(best, dense), _half_width(best, dense)
    unit = " points" if is_percent(metric) else ""
    if drop <= 0:
        return "nothing lost"
    evidence = []
    if half is not None:
        evidence.append(f"noise ±{points_text(metric, half).lstrip('+')}")
    if best.p is not None:
        evidence.append(f"p = {best.p:.2f}")
    return f"a loss of {points_text(metric, drop).lstrip('+')}{unit} ({', '.join(evidence)})"


def _drop(point: Point, dense: Point) -> float:
    return point.drop if point.drop is not None else dense.value - point.value


def _half_width(point: Point, dense: Point) -> float | None:
    return dense.half_width if dense.half_width is not None else point.half_width
