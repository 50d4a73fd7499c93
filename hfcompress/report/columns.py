"""The columns that a table of rows can have, each formatted for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hfcompress.report.classes import worst_class
from hfcompress.report.rows import (
    Z95,
    Row,
    drop_text,
    interval_text,
    is_dense,
    metric_of,
    metric_text,
    number,
    points_text,
    quantize_step,
)

_NOISE = 2.0  # standard errors up to which a difference from a published value is chance


@dataclass(frozen=True)
class Column:
    """One column: its title and its cells, row by row.

    ``text`` is set left, figures right. A constant column goes to the caption unless ``always``.
    ``spare`` says how easily a narrow terminal does without it: 0 never, the highest first.
    """

    title: str
    cells: tuple[str, ...]
    text: bool = False
    always: bool = False
    spare: int = 0


def all_columns(rows: Sequence[Row]) -> list[Column]:
    """Every column in its order, also those without a value."""
    metric = metric_of(rows)

    def column(
        title: str,
        cell: Callable[[Row], str],
        text: bool = False,
        always: bool = False,
        spare: int = 0,
    ) -> Column:
        return Column(title, tuple(cell(row) for row in rows), text, always, spare)

    return [
        column("method", _method, text=True),
        *_setting_columns(rows),
        column("seed", lambda row: _whole(row, "seed")),
        column("sparsity", lambda row: _share(row, "requested_sparsity"), always=True),
        column("actual", lambda row: _share(row, "actual_sparsity"), always=True),
        column("of model", lambda row: _share(row, "model_sparsity", 2), spare=4),
        column("parameters", lambda row: _whole(row, "parameters"), spare=9),
        column("non-zero", lambda row: _whole(row, "nonzero_parameters"), spare=5),
        column("size", _megabytes, spare=8),
        column("MACs", _giga, spare=10),
        column("bytes in int8", lambda row: _share(quantize_step(row), "share_of_bytes"), spare=14),
        column("MACs in int8", lambda row: _share(quantize_step(row), "share_of_macs"), spare=13),
        column(metric, lambda row: metric_text(metric, number(row, "value")), always=True),
        column("95 % interval", lambda row: interval_text(metric, row), always=True, spare=1),
        column("drop", lambda row: drop_text(metric, row)),
        column("worst class", worst_class, text=True, spare=6),
        column("agreement", lambda row: _share(row, "agreement"), spare=2),
        column("McNemar p", _p_value, spare=3),
        *_other_metrics(rows),
        column("published", lambda row: metric_text(metric, number(row, "reference"))),
        column("vs. published", lambda row: _against_published(metric, row), text=True),
        column("seconds", lambda row: _decimal(row, "seconds"), spare=11),
        column("n", lambda row: _whole(row, "n"), spare=12),
        column("note", lambda row: str(row.get("note") or ""), text=True, spare=7),
    ]


def _method(row: Row) -> str:
    return "dense" if is_dense(row) else str(row.get("method") or "")


def _setting_columns(rows: Sequence[Row]) -> list[Column]:
    """Grid fields that tell rows apart which method, sparsity and seed do not."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row.get("method"), row.get("requested_sparsity"), row.get("seed"))
        groups.setdefault(key, []).append(row)
    fields: list[str] = []
    for members in groups.values():
        for field in dict.fromkeys(name for row in members for name in row.get("settings") or {}):
            values = {str((row.get("settings") or {}).get(field)) for row in members}
            if len(values) > 1 and field not in fields and field != "seed":
                fields.append(field)
    return [
        Column(field, tuple(_setting(row, field) for row in rows), text=True) for field in fields
    ]


def _setting(row: Row, field: str) -> str:
    value = (row.get("settings") or {}).get(field)
    return "" if value is None else str(value)


def _other_metrics(rows: Sequence[Row]) -> list[Column]:
    names = dict.fromkeys(name for row in rows for name in row.get("other_metrics") or {})
    return [
        Column(
            name,
            tuple(metric_text(name, number(row.get("other_metrics") or {}, name)) for row in rows),
            spare=6,
        )
        for name in names
    ]


def _share(row: Row, key: str, digits: int = 1) -> str:
    value = number(row, key)
    return "" if value is None else f"{100 * value:.{digits}f} %"


def _whole(row: Row, key: str) -> str:
    value = number(row, key)
    return "" if value is None else f"{value:,.0f}"


def _decimal(row: Row, key: str) -> str:
    value = number(row, key)
    return "" if value is None else f"{value:.1f}"


def _megabytes(row: Row) -> str:
    value = number(row, "bytes")
    return "" if value is None else f"{value / 1e6:,.1f} MB"


def _giga(row: Row) -> str:
    value = number(row, "macs")
    if value is None:
        return ""
    return f"{value / 1e9:,.2f} G" if value >= 1e9 else f"{value / 1e6:,.2f} M"


def _p_value(row: Row) -> str:
    value = number(row, "mcnemar_p")
    if value is None or is_dense(row):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _against_published(metric: str, row: Row) -> str:
    """Our value minus the published one, and whether that is more than chance."""
    value, reference = number(row, "value"), number(row, "reference")
    if value is None or reference is None:
        return ""
    difference, error = points_text(metric, value - reference), _standard_error(row)
    if not error:
        return difference
    errors = abs(value - reference) / error
    judgement = "noise" if errors <= _NOISE else "differs"
    return f"{difference} ({errors:.1f} s.e., {judgement})"


def _standard_error(row: Row) -> float | None:
    """The row's own, else what its 95 % interval says."""
    own, low, high = (number(row, key) for key in ("standard_error", "low", "high"))
    if own is not None or low is None or high is None:
        return own
    return (high - low) / (2 * Z95)
