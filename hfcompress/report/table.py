"""Rows as a table for terminal, Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from hfcompress.report.classes import worst_class
from hfcompress.report.findings import is_about_size, smallest, sweet_spot
from hfcompress.report.leading import leading_places, leading_sentence
from hfcompress.report.rows import (
    Row,
    count_text,
    drop_text,
    interval_text,
    is_dense,
    method_of,
    metric_of,
    metric_text,
    number,
    p_of,
    points_text,
    published_error,
    quantize_step,
    share_text,
    test_of,
)
from hfcompress.report.several import run_of
from hfcompress.utils import visible

_MOST_ROWS = 200  # in a terminal and in Markdown
_NOISE_ERRORS = 2.0  # a difference from a published value of more standard errors is not noise


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: its heading.
        cells: its text, row by row.
        text: align left as text, not right as a number.
        always: stay in the table even if all cells are equal; others move to the caption.
        spare: order in which a narrow terminal drops columns, highest first; 0 is never dropped.
    """

    title: str
    cells: tuple[str, ...]
    text: bool = False
    always: bool = False
    spare: int = 0


@dataclass(frozen=True)
class ResultTable:
    """The columns shown of rows.

    Attributes:
        columns: those shown.
        caption: the values that are equal in all rows.
        marked: lines at the sweet spot, counted from 0.
        rows: the row of each line.
        left_out: a sentence on rows that are not shown; empty where all are.
    """

    columns: tuple[Column, ...]
    caption: str
    marked: frozenset[int]
    rows: tuple[Row, ...]
    left_out: str = ""

    @property
    def titles(self) -> tuple[str, ...]:
        """The titles, column by column."""
        return tuple(column.title for column in self.columns)

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The cells, row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))


@dataclass(frozen=True)
class TerminalTable:
    """A table that fits the width of its terminal; see `rows_table`."""

    table: ResultTable
    title: str | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _rich_table(self.table, self.title, options.max_width)


def result_table(rows: Sequence[Row], most: int | None = None) -> ResultTable:
    """The table of rows, without empty and redundant columns.

    A column without values is left out. One with equal cells moves to the caption, unless it is
    needed to read the table. The actual sparsity is shown only if it differs visibly from the
    requested one. Equal dense rows (the 0 % of each method's grid) are shown once.

    Args:
        rows: any rows.
        most: rows to show, those at the sweet spot and with the highest metric; None shows all.
    """
    every = _without_equal_dense_rows(rows)
    best = _marked_rows(every)
    places = leading_places(every, most, best)
    rows = [every[place] for place in places]
    marked = frozenset(line for line, place in enumerate(places) if place in best)
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
    left_out = leading_sentence(len(rows), every)
    columns = _without_equal_sparsity(shown)
    return ResultTable(columns, " · ".join(constant), marked, tuple(rows), left_out)


def rows_table(rows: Sequence[Row], title: str | None = None) -> TerminalTable:
    """The table for ``rich.console.Console.print``; rows at the sweet spot are bold.

    On a narrow terminal the least important columns are left out and named in the caption.
    """
    return TerminalTable(result_table(rows, _MOST_ROWS), title)


def markdown_table(rows: Sequence[Row]) -> str:
    """The table as GitHub Markdown with its caption; rows at the sweet spot are bold."""
    table = result_table(rows, _MOST_ROWS)
    if not table.columns:
        return ""
    lines = ["| " + " | ".join(markdown_text(title) for title in table.titles) + " |"]
    lines.append("|" + "|".join("---" if c.text else "---:" for c in table.columns) + "|")
    for index, cells in enumerate(table.lines):
        shown = [
            f"**{markdown_text(cell)}**" if index in table.marked and cell else markdown_text(cell)
            for cell in cells
        ]
        lines.append("| " + " | ".join(shown) + " |")
    if table.caption:
        lines += ["", f"In every row: {markdown_text(table.caption)}."]
    return "\n".join(lines) + "\n"


def make_column(
    rows: Sequence[Row],
    title: str,
    cell: Callable[[Row], str],
    *,
    text: bool = False,
    always: bool = False,
    spare: int = 0,
) -> Column:
    """A column with one cell per row; the options are those of `Column`."""
    return Column(title, tuple(cell(row) for row in rows), text, always, spare)


# --- columns -------------------------------------------------------------------------------------


def all_columns(rows: Sequence[Row]) -> list[Column]:
    """Every known column in display order, including empty ones."""
    metric, column = metric_of(rows), partial(make_column, rows)
    return [
        column("run", run_of, text=True),
        column("method", _method, text=True),
        *_setting_columns(rows),
        column("seed", lambda row: count_text(row, "seed")),
        column("sparsity", lambda row: share_text(row, "requested_sparsity"), always=True),
        column("actual", lambda row: share_text(row, "actual_sparsity"), always=True),
        column("of model", lambda row: share_text(row, "model_sparsity", 2), spare=4),
        column("parameters", lambda row: count_text(row, "parameters"), spare=9),
        column("non-zero", lambda row: count_text(row, "nonzero_parameters"), spare=5),
        column("size", _megabytes, spare=8),
        column("MACs", _macs, spare=10),
        column(
            "bytes in int8", lambda row: share_text(quantize_step(row), "share_of_bytes"), spare=14
        ),
        column(
            "MACs in int8", lambda row: share_text(quantize_step(row), "share_of_macs"), spare=13
        ),
        column(metric, lambda row: metric_text(metric, number(row, "value")), always=True),
        column("95 % interval", lambda row: interval_text(metric, row), always=True, spare=1),
        column("drop", lambda row: drop_text(metric, row)),
        column("worst class", worst_class, text=True, spare=6),
        column("agreement", lambda row: share_text(row, "agreement"), spare=2),
        column(f"{test_of(rows)} p", _p_value, spare=3),
        *_other_metrics(rows),
        column("published", lambda row: metric_text(metric, number(row, "reference"))),
        column("vs. published", lambda row: _against_published(metric, row), text=True),
        column("seconds", _seconds, spare=11),
        column("n", lambda row: count_text(row, "n"), spare=12),
        column("note", lambda row: str(row.get("note") or ""), text=True, spare=7),
    ]


def _setting_columns(rows: Sequence[Row]) -> list[Column]:
    """Grid fields that differ between rows of equal method, sparsity and seed."""
    groups: dict[tuple[object, ...], list[Row]] = {}
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


def _without_equal_sparsity(columns: list[Column]) -> tuple[Column, ...]:
    by_title = {column.title: column for column in columns}
    requested, actual = by_title.get("sparsity"), by_title.get("actual")
    equal = requested and actual and requested.cells == actual.cells
    return tuple(column for column in columns if not (equal and column is actual))


# --- cells ---------------------------------------------------------------------------------------


def _method(row: Row) -> str:
    return "dense" if is_dense(row) else str(row.get("method") or "")


def _setting(row: Row, field: str) -> str:
    value = (row.get("settings") or {}).get(field)
    return "" if value is None else str(value)


def _seconds(row: Row) -> str:
    value = number(row, "seconds")
    return "" if value is None else f"{value:.1f}"


def _megabytes(row: Row) -> str:
    value = number(row, "bytes")
    return "" if value is None else f"{value / 1e6:,.1f} MB"


def _macs(row: Row) -> str:
    value = number(row, "macs")
    if value is None:
        return ""
    return f"{value / 1e9:,.2f} G" if value >= 1e9 else f"{value / 1e6:,.2f} M"


def _p_value(row: Row) -> str:
    value = p_of(row)
    if value is None or is_dense(row):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _against_published(metric: str, row: Row) -> str:
    """The value minus the published one, in standard errors too, and whether that is noise."""
    value, reference = number(row, "value"), number(row, "reference")
    if value is None or reference is None:
        return ""
    difference, error = points_text(metric, value - reference), published_error(row)
    if not error:
        return difference
    errors = abs(value - reference) / error
    judgement = "noise" if errors <= _NOISE_ERRORS else "differs"
    return f"{difference} ({errors:.1f} s.e., {judgement})"


# --- rows ----------------------------------------------------------------------------------------


def _without_equal_dense_rows(rows: Sequence[Row]) -> list[Row]:
    seen: set[tuple[object, ...]] = set()
    kept: list[Row] = []
    for row in rows:
        same = ("run", "value", "nonzero_parameters", "reference")
        key = tuple(row.get(field) for field in same)
        if is_dense(row) and key in seen:
            continue
        if is_dense(row):
            seen.add(key)
        kept.append(row)
    return kept


def _marked_rows(rows: Sequence[Row]) -> frozenset[int]:
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
        and method_of(row) == best.method
        and (number(row, "requested_sparsity") == best.requested)
        and (best.requested is not None or number(row, "actual_sparsity") == best.sparsity)
    )


# --- output --------------------------------------------------------------------------------------


def plain_text(text: str, style: str = "") -> Text:
    """Text for a rich table that any console shows as it is, without markup or emoji."""
    return Text(visible(text), style)


def _rich_table(table: ResultTable, title: str | None, width: int) -> RichTable:
    columns = _fitting(table.columns, width)
    caption = [text for text in (table.caption, table.left_out) if text]
    if len(columns) < len(table.columns):
        left_out = [column.title for column in table.columns if column not in columns]
        caption.append(f"not shown: {', '.join(left_out)}")
    shown = RichTable(
        title=None if title is None else plain_text(title, "table.title"),
        caption=plain_text(" · ".join(caption), "table.caption") if caption else None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in columns:
        justify: JustifyMethod = "left" if column.text else "right"
        shown.add_column(plain_text(column.title), justify=justify, no_wrap=True)
    for index, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        style = "bold green" if index in table.marked else None
        shown.add_row(*(plain_text(cell) for cell in cells), style=style)
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


def markdown_text(text: str) -> str:
    """Text on one line that Markdown shows as it is: no link, no formula, no HTML."""
    return re.sub(r"([\\`*\[\]<>|~$&#])", r"\\\1", " ".join(visible(text).split()))
