"""Rows of a sweep, read leniently: fields may be missing or None, rows may be partial.

A *point* is what rows of one method at one sparsity say together, averaged over seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

Row = Mapping[str, Any]

Z95 = 1.959963984540054
"""Standard errors in half of a 95 % interval."""

_PERCENT_METRICS = ("accuracy", "f1", "f1_macro", "precision", "recall")


@dataclass(frozen=True)
class Point:
    """One method at one sparsity, averaged over its seeds; fractions, None where not known.

    ``requested`` and ``sparsity`` (actual, of the targets) place it; ``values`` holds each seed's
    value; ``p`` is the median of the seeds' McNemar p.
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

    @property
    def half_width(self) -> float | None:
        """Half the width of the value's 95 % interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def number(row: Row, key: str) -> float | None:
    """A field as a finite number, or None where it is missing, None, NaN or no number."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < float("inf") else None


def quantize_step(row: Row) -> Row:
    """What the step ``quantize`` of a row says; empty where there is no such step."""
    steps = [step for step in row.get("steps") or [] if step.get("step") == "quantize"]
    return steps[-1] if steps else {}


def is_dense(row: Row) -> bool:
    """Whether a row measures the model before compression: asked for 0 sparsity, or called so."""
    name = str(row.get("method") or "").partition(",")[0]
    return name == "dense" or number(row, "requested_sparsity") == 0


def metric_of(rows: Sequence[Row]) -> str:
    """The name of the metric in ``value``: the first row's that names one."""
    return next((str(row["metric"]) for row in rows if row.get("metric")), "value")


def metric_text(metric: str, value: float | None) -> str:
    """A metric's value for people: ``86.8 %`` for shares, three decimals for others."""
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if metric in _PERCENT_METRICS else f"{value:.3f}"


def points_text(metric: str, value: float | None) -> str:
    """A difference of a metric for people: ``+0.4`` (points of a hundred) or ``+0.004``."""
    if value is None:
        return ""
    text = f"{100 * value:+.1f}" if metric in _PERCENT_METRICS else f"{value:+.3f}"
    return text.replace("-", "−") if float(text) else text[1:]


def is_percent(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return metric in _PERCENT_METRICS


def dense_point(rows: Sequence[Row]) -> Point | None:
    """The dense model's value: from its rows, else from any row that knows its drop."""
    own = [row for row in rows if is_dense(row) and number(row, "value") is not None]
    if own:
        return _point("dense", own)
    for row in rows:
        value, drop = number(row, "value"), number(row, "drop")
        if value is not None and drop is not None:
            known = value + drop
            return Point("dense", 0.0, 0.0, known, None, None, 0.0, None, None, (known,))
    return None


def compressed_points(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Method -> its points in order of sparsity; dense rows and rows without a value left out."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if is_dense(row) or number(row, "value") is None or _sparsity(row) is None:
            continue
        requested = number(row, "requested_sparsity")
        place = requested if requested is not None else round(_sparsity(row) or 0.0, 3)
        groups.setdefault((str(row.get("method") or "compressed"), place), []).append(row)
    lines: dict[str, list[Point]] = {}
    for (method, _), members in groups.items():
        lines.setdefault(method, []).append(_point(method, members))
    return {name: sorted(line, key=lambda point: point.sparsity) for name, line in lines.items()}


def _point(method: str, rows: Sequence[Row]) -> Point:
    values = tuple(value for row in rows if (value := number(row, "value")) is not None)
    p_values = _known(number(row, "mcnemar_p") for row in rows)
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
        values=values,
    )


def _sparsity(row: Row) -> float | None:
    actual = number(row, "actual_sparsity")
    return actual if actual is not None else number(row, "requested_sparsity")


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return fmean(known) if known else None


def interval_text(metric: str, row: Row) -> str:
    """The 95 % interval of a row's metric; empty where there is none."""
    low, high = number(row, "low"), number(row, "high")
    if low is None or high is None:
        return ""
    return f"{metric_text(metric, low).removesuffix(' %')}–{metric_text(metric, high)}"


def drop_text(metric: str, row: Row) -> str:
    """What a row lost against the dense model; empty for the dense model itself."""
    drop = number(row, "drop")
    return "" if drop is None or is_dense(row) else points_text(metric, drop).lstrip("+")
