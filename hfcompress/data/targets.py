"""Labels that are not one class for each row: sets of labels, and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from datasets import ClassLabel, Dataset, List, Value

from hfcompress.config import nearest
from hfcompress.data.columns import count_dropped, find_column, sorted_labels, with_labels
from hfcompress.data.config import LABEL_COLUMNS, SCORE_COLUMNS, DataConfig
from hfcompress.errors import DataError
from hfcompress.models.labels import label_name
from hfcompress.models.outputs import OutputKind

_TRUTHS: Mapping[str, float] = MappingProxyType({"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0})
_KINDS: Mapping[str, OutputKind] = MappingProxyType(
    {"classes": "classification", "sets": "multi_label", "numbers": "regression"}
)
Row = list[float] | None


@dataclass(frozen=True)
class Targets:
    """What some rows are labelled with.

    Attributes:
        kind: sets of labels (``multi_label``) or numbers (``regression``).
        names: of the labels, or of the numbers.
        rows: 0 or 1 for each label, or the numbers; None for a row without; by side.
        notes: what was decided, one sentence each.
    """

    kind: OutputKind
    names: tuple[str, ...]
    rows: dict[str, list[Row]]
    notes: tuple[str, ...] = ()


def find_targets(sides: Mapping[str, Dataset], config: DataConfig) -> Targets | None:
    """Return the labels of all sides; None where each row has one class.

    Lists of names are sets of labels; lists of one length with 0 and 1 say of each label whether
    it holds. Several columns of 0 and 1 are labels, of other values numbers. One column with
    fractions is of numbers. ``config.problem`` says it where the values do not.

    Raises:
        DataError: values that are neither, or outside of ``config.range``.
    """
    first = next(iter(sides.values()))
    columns = _label_columns(config, first)
    values = {side: _values(rows, columns) for side, rows in sides.items()}
    kind = _kind(values, columns, config)
    if kind == "classification":
        return None
    if kind == "regression":
        rows = {
            side: [_numbers(value, columns, config, f"row {n} of the {side} side")
                   for n, value in enumerate(part)]
            for side, part in values.items()
        }  # fmt: skip
        widths = sorted({len(row) for part in rows.values() for row in part if row})
        if len(widths) > 1:
            raise DataError(
                f"data.label: a row has {widths[-1]} numbers and another row {widths[0]}; give "
                f"each row as many"
            )
        width = widths[0] if widths else 0
        names = columns if len(columns) == width else tuple(str(n) for n in range(width))
        note = f"the labels in {', '.join(columns)} are numbers: a regression"
        return Targets(kind, names, rows, () if config.problem else (note,))
    return _sets(values, columns, first, config)


def _label_columns(config: DataConfig, rows: Dataset) -> tuple[str, ...]:
    if isinstance(config.label, tuple) and len(config.label) > 1:
        return tuple(find_column(name, (), rows, "label") for name in config.label)
    named = config.label[0] if isinstance(config.label, tuple) else config.label
    scores = config.problem in (None, "numbers")
    usual = (*LABEL_COLUMNS, *SCORE_COLUMNS) if scores else LABEL_COLUMNS
    return (find_column(named, usual, rows, "label"),)


def _values(rows: Dataset, columns: Sequence[str]) -> list[object]:
    """The value of each row; a tuple of several columns."""
    parts = [rows[column][:] for column in columns]
    return list(parts[0]) if len(parts) == 1 else list(zip(*parts, strict=True))


def _kind(
    values: Mapping[str, list[object]], columns: Sequence[str], config: DataConfig
) -> OutputKind:
    given = [value for part in values.values() for value in part if value is not None]
    if config.problem is not None:
        return _KINDS[config.problem]
    if any(isinstance(value, (list, tuple)) for value in given):
        members = [one for value in given if isinstance(value, (list, tuple)) for one in value]
        truths = all(_fold(one) in _TRUTHS for one in members if one is not None)
        numbers = _have_fractions(members) or (len(columns) > 1 and not truths)
        return "regression" if numbers else "multi_label"
    scored = config.label is None and columns[0].casefold() in SCORE_COLUMNS
    return "regression" if scored or _have_fractions(given) else "classification"


def _have_fractions(values: Sequence[object]) -> bool:
    """Whether all values are numbers, and some are not whole."""
    texts = {str(value) for value in values if value is not None and value != ""} - {"nan"}
    try:
        return any(not float(text).is_integer() for text in texts)
    except (ValueError, OverflowError):
        return False


def _fold(value: object) -> str:
    """A truth value as a key: 1, 1.0 and "1" are the same."""
    return label_name(value).casefold()


# --- numbers -----------------------------------------------------------------------------------


def _numbers(value: object, columns: Sequence[str], config: DataConfig, row: str) -> Row:
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    if any(part is None or str(part).strip().casefold() in ("", "nan") for part in parts):
        return None
    found = []
    for part in parts:
        try:
            number = float(str(part))
        except (TypeError, ValueError):
            raise DataError(
                f"data.label: {row} has {part!r} in {', '.join(columns)}, which is not a number"
            ) from None
        if not math.isfinite(number):
            raise DataError(f"data.label: {row} has {part!r} in {', '.join(columns)}; remove it")
        least, most = (-math.inf, math.inf) if config.range is None else map(float, config.range)
        if not least <= number <= most:
            raise DataError(
                f"data.label: {row} has {number:g} in {', '.join(columns)}, outside of data.range "
                f"[{least:g}, {most:g}]; correct it, or widen the range"
            )
        found.append(number)
    return found


# --- sets of labels ----------------------------------------------------------------------------


def _sets(
    values: Mapping[str, list[object]], columns: Sequence[str], first: Dataset, config: DataConfig
) -> Targets:
    given = [value for part in values.values() for value in part if value is not None]
    if len(columns) > 1:
        names = tuple(columns)
        rows = {side: [_truths(value, columns) for value in part] for side, part in values.items()}
        return Targets("multi_label", names, rows)
    column = columns[0]
    listed = [_listed(value) for value in given]
    widths = {len(row) for row in listed}
    known = _class_names(first, column)
    binary = all(_fold(one) in _TRUTHS for row in listed for one in row)
    if known is None and binary and len(widths) == 1 and max(widths) > 1:
        width = max(widths)
        stated = config.labels if isinstance(config.labels, tuple) else range(width)
        if len(tuple(stated)) != width:
            raise DataError(
                f"data.labels lists {len(tuple(stated))} labels and {column!r} has {width} numbers "
                f"in a row; list one name for each"
            )
        names = tuple(label_name(name) for name in stated)
        rows = {side: [_truths(value, columns) for value in part] for side, part in values.items()}
        return Targets("multi_label", names, rows)

    def named(value: object) -> list[str]:
        return [known[int(str(one))] if known else label_name(one) for one in _listed(value)]

    present = {name for value in given for name in named(value)}
    names = tuple(known or sorted_labels(sorted(present)))
    if isinstance(config.labels, tuple):
        names = tuple(label_name(name) for name in config.labels)
        unknown = sorted(present - set(names))
        if unknown:
            raise DataError(
                f"data.labels does not list {unknown[0]!r} of {column!r}"
                f"{nearest(unknown[0], list(names))}; list all labels"
            )
    if len(names) < 2:
        raise DataError(f"data.label: {column!r} has {len(names)} label in all; give two or more")
    places = {name: number for number, name in enumerate(names)}

    def marked(value: object) -> Row:
        own = {places[name] for name in named(value)}
        return [float(place in own) for place in range(len(names))]

    rows = {side: [None if value is None else marked(value) for value in part]
            for side, part in values.items()}  # fmt: skip
    return Targets("multi_label", names, rows)


def _listed(value: object) -> list[object]:
    """The labels of a row: a list, or a text divided at ``|``, ``;`` or a comma."""
    if isinstance(value, (list, tuple)):
        return list(value)
    text = str(value)
    mark = next((one for one in "|;," if one in text), None)
    parts = [text] if mark is None else text.split(mark)
    return [part.strip() for part in parts if part.strip()]


def _truths(value: object, columns: Sequence[str]) -> Row:
    parts = _listed(value)
    if any(part is None for part in parts):
        return None
    for part in parts:
        if _fold(part) not in _TRUTHS:
            raise DataError(
                f"data.label: {part!r} in {', '.join(columns)} does not say whether the label "
                f"holds; use 0 and 1"
            )
    return [_TRUTHS[_fold(part)] for part in parts]


def _class_names(rows: Dataset, column: str) -> list[str] | None:
    feature = rows.features[column]
    inner = feature.feature if isinstance(feature, List) else feature
    return [str(name) for name in inner.names] if isinstance(inner, ClassLabel) else None


def targeted(
    rows: Dataset, values: Sequence[Row], columns: Sequence[str], side: str, dropped: dict[str, int]
) -> Dataset:
    """Rows that have a label and an input, with a ``label`` column of lists.

    Args:
        rows: of one side.
        values: the label of each row.
        columns: rows whose texts are empty are left out.
        side: for the reasons in ``dropped``.
        dropped: receives how many rows were left out, by reason.
    """
    keep = [place for place, value in enumerate(values) if value is not None]
    count_dropped(dropped, f"{side}: no label", len(values) - len(keep))
    if isinstance(rows.features[columns[0]], Value):
        texts = [rows[column][:] for column in columns]
        full = [place for place in keep if all(text[place] for text in texts)]
        count_dropped(dropped, f"{side}: empty {' or '.join(columns)}", len(keep) - len(full))
        keep = full
    labels = [value for value in (values[place] for place in keep) if value is not None]
    return with_labels(rows.select(keep), labels)
