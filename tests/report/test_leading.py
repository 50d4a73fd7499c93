"""Pages of very many rows: bounded tables and pictures, whose best rows are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfcompress.report.findings import sweet_spot
from hfcompress.report.leading import MOST_LINES, MOST_ROWS, drawn_rows, leading_places
from hfcompress.report.page import html_page
from hfcompress.report.pipeline import MOST_BARS, bars_figure
from hfcompress.report.rows import method_of
from hfcompress.report.table import result_table
from hfcompress.report.write import write_report


def many_rows(count: int, methods: int = 2) -> list[dict[str, Any]]:
    """Rows of a dense model and of methods at rising sparsity, with a metric of their own each."""
    dense = {"metric": "accuracy", "method": "dense", "requested_sparsity": 0.0, "value": 0.9,
             "low": 0.85, "high": 0.95, "drop": 0.0}  # fmt: skip
    rows = [dense]
    for index in range(1, count):
        sparsity = 0.1 + 0.8 * (index // methods) / count
        rows.append({
            **dense, "method": f"way {index % methods}", "requested_sparsity": sparsity,
            "actual_sparsity": sparsity, "value": 0.9 - 0.3 * sparsity - index % methods / 1e3,
            "drop": 0.3 * sparsity, "mcnemar_p": 0.5, "hash": f"{index}",
        })  # fmt: skip
    return rows


def test_a_table_of_many_rows_shows_the_best_ones_and_the_sweet_spot() -> None:
    rows = many_rows(400)
    rows[-1] = {**rows[-1], "value": 0.0}
    table = result_table(rows, 50)
    assert len(table.lines) == 50
    (values,) = (column.cells for column in table.columns if column.title == "accuracy")
    assert "0.0 %" not in values
    assert "90.0 %" in values
    assert table.left_out.startswith("50 of 400 rows are shown, those with the highest accuracy")
    assert len(table.marked) == len(result_table(rows).marked) == 1
    (line,), best = table.marked, sweet_spot(rows)
    assert best is not None
    assert f"{100 * best.value:.1f} %" in table.lines[line]
    assert result_table(rows).left_out == ""


def test_the_rows_asked_for_come_before_the_best_and_the_order_stays() -> None:
    rows = [{"value": value} for value in (0.1, 0.9, None, 0.5, 0.7)]
    assert leading_places(rows, 3) == [1, 3, 4]
    assert leading_places(rows, 3, first={2}) == [1, 2, 4]
    assert leading_places(rows, None) == leading_places(rows, 5) == [0, 1, 2, 3, 4]


def test_a_plot_of_many_methods_draws_the_best_of_them() -> None:
    rows = many_rows(301, methods=100)
    drawn = drawn_rows(rows)
    names = {method_of(row) for row in drawn[1:]}
    assert len(names) == MOST_LINES
    assert {"way 1", "way 2", "way 3"} <= names
    assert len(drawn) == 1 + 3 * MOST_LINES
    assert drawn_rows(many_rows(301)) == many_rows(301)
    sizes = [{**row, "requested_sparsity": None, "bytes": 1e6} for row in rows[1:]]
    assert len(drawn_rows(sizes)) == MOST_LINES


def test_the_page_grows_no_more_once_its_tables_are_full(tmp_path: Path) -> None:
    rows = many_rows(2 * MOST_ROWS)
    failed = [
        {"hash": "f", "settings": {"a": 1}, "status": "failed", "reason": "x" * 50}
    ] * MOST_ROWS
    few, many = (
        html_page(rows[:count], pictures={}, failures=failed[: count // 2])
        for count in (MOST_ROWS + 300, 2 * MOST_ROWS)
    )
    assert len(many) < 1.02 * len(few)
    assert "more</td>" in many
    every_step = [{**row, "steps": [{}] * (place % 3)} for place, row in enumerate(rows)]
    assert len(html_page(every_step, pictures={})) < 2 * len(many)
    write_report(rows, tmp_path)
    assert (tmp_path / "results.csv").read_text().count("\n") == len(rows) + 1


def test_a_pipeline_of_many_rows_has_a_picture_of_its_first_ones() -> None:
    rows = [{**row, "bytes": 1e6, "steps": []} for row in many_rows(700)]
    assert len(bars_figure(rows).axes[0].patches) == MOST_BARS
