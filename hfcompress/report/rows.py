"""Rows of a sweep: field access that tolerates missing values, averages over seeds, and text.

Rows may be partial: any field may be missing or None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median
from typing import Any

Row = Mapping[str, Any]
"""A row of a sweep, or a mapping inside one: JSON data under string keys."""

Z95 = 1.959963984540054
"""Half the width of a 95 % interval, in standard errors."""

_PERCENT_METRICS = {"accuracy", "balanced_accuracy", "mean_average_precision"} | {
    f"{name}{average}"
    for name in ("f1", "precision", "recall")
    for average in ("", "_macro", "_micro", "_weighted")
}


# --- fields ------------------------------------------------------------------------------------


def number(row: Row, key: str) -> float | None:
    """A field as a finite number; None if it is missing, infinite, NaN or not a number."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < float("inf") else None


def method_of(row: Row, default: str = "compressed") -> str:
    """The name of the row's method, or the default; among several runs after its run's name."""
    name, run = str(row.get("method") or default), row.get("run")
    return f"{run}: {name}" if run else name


def steps_of(row: Row) -> list[Row]:
    """The reports of the row's steps, in order."""
    return [step for step in row.get("steps") or () if isinstance(step, Mapping)]


def quantize_step(row: Row) -> Row:
    """The report of the row's last ``quantize`` step; empty without one."""
    steps = [step for step in steps_of(row) if step.get("step") == "quantize"]
    return steps[-1] if steps else {}


FAILED = "failed"


def is_failed(row: Row) -> bool:
    """Whether a row is that of a trial that failed: it has a ``reason`` and no measurement."""
    return row.get("status") == FAILED


def is_dense(row: Row) -> bool:
    """Whether a row measures the uncompressed model: its method is dense, or it requests 0 %."""
    name = str(row.get("method") or "").partition(",")[0]
    return name == "dense" or number(row, "requested_sparsity") == 0


def p_of(row: Row) -> float | None:
    """The p-value of no difference from the dense model: McNemar's, or by paired bootstrap."""
    exact = number(row, "mcnemar_p")
    return number(row, "paired_p") if exact is None else exact


def test_of(rows: Sequence[Row]) -> str:
    """What the p-values of rows are of."""
    paired = any(number(row, "paired_p") is not None for row in rows)
    return "paired bootstrap" if paired else "McNemar"


def majority_of(row: Row) -> float | None:
    """The share of the most frequent class among the measured examples; None if unknown."""
    known = number(row, "majority")
    if known is not None:
        return known
    entries = [
        entry
        for entry in row.get("classes") or ()
        if isinstance(entry, Mapping) and "metric" not in entry  # else no row has one class
    ]
    sizes = [number(entry, "n") or 0.0 for entry in entries]
    return max(sizes) / sum(sizes) if sum(sizes) else None


def chance_of(row: Row) -> float | None:
    """The metric of always answering the same class; None if unknown."""
    known = number(row, "chance")
    return majority_of(row) if known is None and row.get("metric") == "accuracy" else known


BELOW_CHANCE = "below chance level: labels may be swapped"


def is_below_chance(row: Row) -> bool:
    """Whether a row's 95 % interval is below what guessing gives: its labels may be swapped."""
    guess = {"accuracy": 1 / max(len(row.get("classes") or ()), 2),
             "matthews_correlation": 0.0, "cohen_kappa": 0.0}  # fmt: skip
    high, level = number(row, "high"), guess.get(str(row.get("metric")))
    return high is not None and level is not None and high < level


def published_error(row: Row) -> float | None:
    """The standard error of a row's value minus the published one.

    That of two samples where the row says how many examples the published value is of; else the
    row's own.
    """
    own, low, high = (number(row, key) for key in ("standard_error", "low", "high"))
    if own is None and low is not None and high is not None:
        own = (high - low) / (2 * Z95)
    n, theirs = number(row, "n"), number(row, "reference_n")
    return own if not own or not n or not theirs else own * sqrt(1 + n / theirs)


def published_sentence(rows: Sequence[Row]) -> str:
    """One sentence where the published figures are of another number of examples; else empty."""
    for row in rows:
        n, theirs = number(row, "n"), number(row, "reference_n")
        if n and theirs and n != theirs:
            return (
                f"The published figures are of {theirs:,.0f} examples and these of {n:,.0f}: the "
                f"standard error (s.e.) beside a difference is that of two samples. --set "
                f"data.max_eval={theirs:.0f} measures as many."
            )
    return ""


def metric_of(rows: Sequence[Row]) -> str:
    """The name of the metric in ``value``, from the first row that names one."""
    return next((str(row["metric"]) for row in rows if row.get("metric")), "value")


# --- points ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """Rows of one method at one sparsity, averaged over seeds. Fractions; None if unknown.

    Attributes:
        method: name of the method.
        requested: requested sparsity.
        sparsity: actual sparsity of the target weights.
        value: the metric.
        low, high: its 95 % interval.
        drop: the dense model's value minus ``value``.
        p: median of the seeds' p-values of no difference from the dense model.
        reference: published value.
        values: the metric of each seed.
        agreement: share of the examples on which it answers as the dense model does.
        chance: the metric of always answering the same class.
        majority: share of the most frequent class.
    """

    method: str
    requested: float | None
    sparsity: float
    value: float
    low: float | None
    high: float | None
    drop: float | None
    p: float | None
    reference: float | None
    values: tuple[float, ...]
    agreement: float | None = None
    chance: float | None = None
    majority: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the width of the 95 % interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def average(method: str, rows: Sequence[Row]) -> Point:
    """The mean of rows that differ by seed; at least one must have a value."""
    values = _known(number(row, "value") for row in rows)
    p_values = _known(p_of(row) for row in rows)
    return Point(
        method=method,
        requested=_mean(number(row, "requested_sparsity") for row in rows),
        sparsity=_mean(_sparsity(row) for row in rows) or 0.0,
        value=fmean(values),
        low=_mean(number(row, "low") for row in rows),
        high=_mean(number(row, "high") for row in rows),
        drop=_mean(number(row, "drop") for row in rows),
        p=median(p_values) if p_values else None,
        reference=_mean(number(row, "reference") for row in rows),
        values=tuple(values),
        agreement=_mean(number(row, "agreement") for row in rows),
        chance=_mean(chance_of(row) for row in rows),
        majority=_mean(majority_of(row) for row in rows),
    )


def dense_point(rows: Sequence[Row]) -> Point | None:
    """The dense model's value: from its own rows, else computed from any row's drop."""
    own = [row for row in rows if is_dense(row) and number(row, "value") is not None]
    if own:
        return average("dense", own)
    for row in rows:
        value, drop = number(row, "value"), number(row, "drop")
        if value is not None and drop is not None:
            known = value + drop
            chance, majority = chance_of(row), majority_of(row)
            return Point("dense", 0.0, 0.0, known, None, None, 0.0, None, None, (known,), 1.0,
                         chance, majority)  # fmt: skip
    return None


def dense_points(rows: Sequence[Row]) -> dict[str, Point]:
    """Run -> its dense model's value, as `dense_point`; one without a name where all rows are of
    one run, or the dense models of several are equally good."""
    runs = dict.fromkeys(str(row.get("run") or "") for row in rows)
    found = {run: dense_point([row for row in rows if row.get("run", "") == run]) for run in runs}
    known = {run: point for run, point in found.items() if point is not None}
    whole = dense_point(rows)
    if whole is None or len({point.value for point in known.values()}) < 2:
        return {} if whole is None else {"": whole}
    return known


def compressed_points(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Method -> its points by rising sparsity, without dense rows and rows without a value."""
    lines = points_and_rows(rows)
    return {name: [point for point, _ in line] for name, line in lines.items()}


def points_and_rows(rows: Sequence[Row]) -> dict[str, list[tuple[Point, list[int]]]]:
    """As `compressed_points`, each point with the places of the rows that it averages."""
    groups: dict[tuple[str, float], list[int]] = {}
    for place, row in enumerate(rows):
        if is_dense(row) or number(row, "value") is None or _sparsity(row) is None:
            continue
        requested = number(row, "requested_sparsity")
        sparsity = requested if requested is not None else round(_sparsity(row) or 0.0, 3)
        groups.setdefault((method_of(row), sparsity), []).append(place)
    lines: dict[str, list[tuple[Point, list[int]]]] = {}
    for (method, _), places in groups.items():
        point = average(method, [rows[place] for place in places])
        lines.setdefault(method, []).append((point, places))
    return {name: sorted(line, key=lambda pair: pair[0].sparsity) for name, line in lines.items()}


def point_of(row: Row) -> Point | None:
    """A single row as a point; None for a dense row and for one without value or sparsity."""
    points = [point for line in compressed_points([row]).values() for point in line]
    return points[0] if points else None


def _sparsity(row: Row) -> float | None:
    actual = number(row, "actual_sparsity")
    return actual if actual is not None else number(row, "requested_sparsity")


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return fmean(known) if known else None


# --- text --------------------------------------------------------------------------------------


def is_percent(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return metric in _PERCENT_METRICS


def metric_text(metric: str, value: float | None) -> str:
    """Format a metric: ``86.8 %`` for rates, ``0.868`` for others."""
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if is_percent(metric) else f"{value:.3f}"


def points_text(metric: str, value: float | None) -> str:
    """Format a signed difference of a metric: ``+0.4`` (percentage points) or ``+0.004``."""
    if value is None:
        return ""
    text = f"{100 * value:+.1f}" if is_percent(metric) else f"{value:+.3f}"
    return text.replace("-", "−") if float(text) else text[1:]


def interval_text(metric: str, row: Row) -> str:
    """Format the 95 % interval of a row's metric; empty without one."""
    low, high = number(row, "low"), number(row, "high")
    if low is None or high is None:
        return ""
    return f"{metric_text(metric, low).removesuffix(' %')}–{metric_text(metric, high)}"


def drop_text(metric: str, row: Row) -> str:
    """Format a row's drop against the dense model; empty for the dense model itself."""
    drop = number(row, "drop")
    return "" if drop is None or is_dense(row) else points_text(metric, drop).lstrip("+")


def share_text(row: Row, key: str, digits: int = 1) -> str:
    """Format a fraction as percent; empty if unknown."""
    value = number(row, key)
    return "" if value is None else f"{100 * value:.{digits}f} %"


def count_text(row: Row, key: str) -> str:
    """Format a count with thousands separators; empty if unknown."""
    value = number(row, key)
    return "" if value is None else f"{value:,.0f}"
