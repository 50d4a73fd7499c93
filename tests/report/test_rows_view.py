"""Results in a notebook and as a table of pandas."""

from __future__ import annotations

import csv
import io
from typing import Any

from hfcompress.report.csv_table import csv_text
from hfcompress.sweep.run import SweepResult

ROWS: list[dict[str, Any]] = [
    {"hash": f"row-{sparsity}", "method": "<script> / $x$", "requested_sparsity": sparsity,
     "actual_sparsity": sparsity, "metric": "accuracy", "value": 0.9 - sparsity / 10,
     "low": 0.8, "high": 0.95, "drop": sparsity / 10, "other_metrics": {"f1": 0.5}, "steps": []}
    for sparsity in (0.3, 0.5)
]  # fmt: skip


def test_a_result_shows_its_rows_as_text() -> None:
    shown = SweepResult(ROWS, [], None)._repr_html_()
    assert shown.count("<tr>") == 3
    assert "87.0 %" in shown
    assert "<script>" not in shown
    assert "&lt;script&gt; / $x$" in shown


def test_a_result_becomes_the_table_of_the_csv() -> None:
    frame = SweepResult(ROWS, [], None).to_pandas()
    read = list(csv.DictReader(io.StringIO(csv_text(ROWS))))
    assert list(frame.columns) == list(read[0])
    assert list(frame["value"]) == [row["value"] for row in ROWS]
    assert list(frame["other_metrics.f1"]) == [0.5, 0.5]
