"""``RowsView``: rows that show themselves in a notebook and become a table of pandas."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from html import escape
from typing import Any

from hfcompress.report.csv_table import flat_row
from hfcompress.report.rows import Row
from hfcompress.report.table import result_table


class RowsView:
    """Base of results that have rows.

    Attributes:
        rows: as a run keeps them.
    """

    rows: Sequence[Row]

    def to_pandas(self) -> Any:
        """Return the rows as a ``pandas.DataFrame`` with the columns of ``results.csv``."""
        return importlib.import_module("pandas").DataFrame([flat_row(row) for row in self.rows])

    def _repr_html_(self) -> str:
        """Return the rows as an HTML table, for notebooks; names are shown as text."""
        table = result_table(self.rows)
        head = "".join(f'<th scope="col">{escape(title)}</th>' for title in table.titles)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
            for cells in table.lines
        )
        caption = escape(table.caption)
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>"
