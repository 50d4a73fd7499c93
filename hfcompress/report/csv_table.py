"""Rows as CSV, every field of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from hfcompress.report.rows import Row
from hfcompress.utils import atomic_write

Cell = TypeVar("Cell")
_FORMULA = tuple("=+-@|%＝＋－＠")  # what makes a cell a formula in some spreadsheet


def csv_text(rows: Sequence[Row]) -> str:
    """Every field of every row as CSV: one column per nested field, without lists.

    Text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    flat = [
        {_no_formula(name): _no_formula(value) for name, value in flat_row(row).items()}
        for row in rows
    ]  # fmt: skip
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _no_formula(value: Cell) -> Cell | str:
    """A cell; text that begins like a formula, and is not a number, behind an apostrophe."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")  # csv does not quote "\r"
    if not text.lstrip().startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def write_csv(rows: Sequence[Row], path: str | Path) -> Path:
    """Write `csv_text` to a file, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    return atomic_write(path, csv_text(rows))


def flat_row(row: Row) -> dict[str, object]:
    """Return a row's fields as the CSV has them: one for each nested field, without lists."""
    flat: dict[str, object] = {}
    for key, value in row.items():
        if isinstance(value, list):
            continue
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat
