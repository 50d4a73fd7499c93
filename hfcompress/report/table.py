"""Rows as a table: for the terminal, as Markdown, as HTML cells, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.markup import escape
from rich.table import Table as RichTable

from hfcompress.files import atomic_write
from hfcompress.report.columns import Column, all_columns
from hfcompress.report.findings import sweet_spot
from hfcompress.report.rows import Row, is_dense, number
from hfcompress.report.smallest import is_about_size, smallest


@dataclass(frozen=True)
class ResultTable:
    """What is shown of rows: the columns that say something, and the constant rest as a caption.

    ``marked`` are the numbers of the rows that are the sweet spot.
    """

    columns: tuple[Column, ...]
    caption: str
    marked: frozenset[int]

    @property
    def titles(self) -> tuple[str, ...]:
        """The titles of the columns."""
        return tuple(column.title for column in self.columns)

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The cells, row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))


def result_table(rows: Sequence[Row]) -> ResultTable:
    """Choose and format what is worth showing.

    A column without any value is left out. One with the same value in every row goes to the
    caption, unless the table makes no sense without it. The actual sparsity is shown only where
    it differs visibly from the requested one. Dense rows that say the same (the 0 % of each
    method's grid) are shown once.
    """
    rows = _distinct(rows)
    shown: list[Column] = []
    constant: list[str] = []
    for column in all_columns(rows):
        filled = set(column.cells)
        if not filled - {""}:
            continue
        if len(rows) > 1 and len(filled) == 1 and not column.always:
            constant.append(f"{column.title} {column.cells[0]}")
            continue
        shown.append(column)
    return ResultTable(_without_repeats(shown), " · ".join(constant), _marked(rows))


def _distinct(rows: Sequence[Row]) -> list[Row]:
    seen: set[tuple[object, ...]] = set()
    kept: list[Row] = []
    for row in rows:
        key = (row.get("value"), row.get("nonzero_parameters"), row.get("reference"))
        if is_dense(row) and key in seen:
            continue
        if is_dense(row):
            seen.add(key)
        kept.append(row)
    return kept


def _without_repeats(columns: list[Column]) -> tuple[Column, ...]:
    by_title = {column.title: column for column in columns}
    requested, actual = by_title.get("sparsity"), by_title.get("actual")
    repeats = requested and actual and requested.cells == actual.cells
    return tuple(column for column in columns if not (repeats and column is actual))


def _marked(rows: Sequence[Row]) -> frozenset[int]:
    if is_about_size(rows):
        place = smallest(rows)
        return frozenset() if place is None else frozenset([place])
    best = sweet_spot(rows)
    if best is None:
        return frozenset()
    return frozenset(
        index
        for index, row in enumerate(rows)
        if not is_dense(row)
        and str(row.get("method") or "compressed") == best.method
        and (number(row, "requested_sparsity") == best.requested)
        and (best.requested is not None or number(row, "actual_sparsity") == best.sparsity)
    )


@dataclass(frozen=True)
class TerminalTable:
    """A table that fits the terminal that it is printed on; see `rows_table`."""

    table: ResultTable
    title: str | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _rich(self.table, self.title, options.max_width)


def rows_table(rows: Sequence[Row], title: str | None = None) -> TerminalTable:
    """The table for ``rich.console.Console.print``; the sweet spot's rows are bold.

    Where the terminal is too narrow, the columns that matter least are left out until the rest
    fits, and the caption names them.
    """
    return TerminalTable(result_table(rows), title)


def _rich(table: ResultTable, title: str | None, width: int) -> RichTable:
    columns = _fitting(table.columns, width)
    caption = [table.caption] if table.caption else []
    if len(columns) < len(table.columns):
        left_out = [column.title for column in table.columns if column not in columns]
        caption.append(f"not shown: {', '.join(left_out)}")
    shown = RichTable(
        title=None if title is None else escape(title),
        caption=escape(" · ".join(caption)) or None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in columns:
        justify: JustifyMethod = "left" if column.text else "right"
        shown.add_column(escape(column.title), justify=justify, no_wrap=True)
    for index, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        style = "bold green" if index in table.marked else None
        shown.add_row(*(escape(cell) for cell in cells), style=style)
    return shown


def _fitting(columns: tuple[Column, ...], width: int) -> tuple[Column, ...]:
    for column in sorted(columns, key=lambda column: -column.spare):
        fits = sum(_width(one) + 3 for one in columns) <= width
        if fits or not column.spare:
            break
        columns = tuple(other for other in columns if other is not column)
    return columns


def _width(column: Column) -> int:
    return max(cell_len(text) for text in (column.title, *column.cells))


def markdown_table(rows: Sequence[Row]) -> str:
    """The table as GitHub Markdown, with the caption below; the sweet spot's rows are bold."""
    table = result_table(rows)
    if not table.columns:
        return ""
    lines = ["| " + " | ".join(_cell(title) for title in table.titles) + " |"]
    lines.append("|" + "|".join("---" if c.text else "---:" for c in table.columns) + "|")
    for index, cells in enumerate(table.lines):
        shown = [
            f"**{_cell(cell)}**" if index in table.marked and cell else _cell(cell)
            for cell in cells
        ]
        lines.append("| " + " | ".join(shown) + " |")
    if table.caption:
        lines += ["", f"In every row: {table.caption}."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def csv_text(rows: Sequence[Row]) -> str:
    """Every field of every row as CSV; settings and other metrics one column each, no lists."""
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def write_csv(rows: Sequence[Row], path: str | Path) -> Path:
    """Write `csv_text` to a file, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    return atomic_write(path, csv_text(rows))


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, list):
            continue
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat
