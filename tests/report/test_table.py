from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hfcompress.report.csv_table import csv_text, write_csv
from hfcompress.report.rows import published_sentence
from hfcompress.report.table import markdown_table, result_table, rows_table


def row(sparsity: float, value: float, **fields: Any) -> dict[str, Any]:
    return {
        "hash": "abc",
        "settings": {"prune.sparsity": sparsity, "prune.scope": "layer"},
        "method": "magnitude / layer",
        "seed": 0,
        "requested_sparsity": sparsity,
        "actual_sparsity": sparsity - 1e-8 if sparsity else 0.0,
        "model_sparsity": 0.6431 * sparsity,
        "parameters": 66_955_010,
        "nonzero_parameters": round(66_955_010 * (1 - 0.6431 * sparsity)),
        "bytes": 267_832_560,
        "macs": None,
        "metric": "accuracy",
        "value": value,
        "low": value - 0.02,
        "high": value + 0.02,
        "n": 872,
        "drop": 0.9 - value,
        "agreement": 0.95,
        "mcnemar_p": 0.4,
        "other_metrics": {"f1": value},
        "seconds": 1.5 + sparsity,
        "reference": None,
        "note": "",
        "layers": [{"name": "a", "weights": 10, "zeros": 3}],
        **fields,
    }


ROWS = [row(0.0, 0.9), row(0.3, 0.895), row(0.5, 0.8, mcnemar_p=0.0001)]


def cells(rows: list[dict[str, Any]], title: str) -> tuple[str, ...]:
    [column] = [column for column in result_table(rows).columns if column.title == title]
    return column.cells


def test_constant_columns_move_to_the_caption_and_empty_ones_are_dropped() -> None:
    table = result_table(ROWS)
    assert "MACs" not in (*table.titles, table.caption)
    assert "parameters" not in table.titles
    constant = ["seed 0", "parameters 66,955,010", "size 267.8 MB", "agreement 95.0 %", "n 872"]
    assert table.caption == " · ".join(constant)


def test_cells_are_formatted_with_units() -> None:
    assert cells(ROWS, "method") == ("dense", "magnitude / layer", "magnitude / layer")
    assert cells(ROWS, "of model") == ("0.00 %", "19.29 %", "32.16 %")
    assert cells(ROWS, "accuracy") == ("90.0 %", "89.5 %", "80.0 %")
    assert cells(ROWS, "95 % interval")[1] == "87.5–91.5 %"
    assert cells(ROWS, "drop") == ("", "0.5", "10.0")
    assert cells(ROWS, "McNemar p") == ("", "0.400", "< 0.001")
    assert cells(ROWS, "f1")[0] == "90.0 %"
    assert cells([row(0.3, 0.9, macs=5_437_000_000)], "MACs") == ("5.44 G",)
    assert cells([row(0.3, 0.9, macs=5_437_000)], "MACs") == ("5.44 M",)


def test_actual_sparsity_is_shown_where_it_differs_visibly() -> None:
    assert "actual" not in result_table(ROWS).titles
    off = [*ROWS, row(0.8, 0.7, actual_sparsity=0.75)]
    assert cells(off, "actual")[-1] == "75.0 %"


def test_a_single_row_keeps_every_column_with_a_value() -> None:
    table = result_table(ROWS[1:2])
    assert {"parameters", "n", "seed", "drop"} <= set(table.titles)
    assert table.caption == ""


def test_a_setting_that_differs_between_rows_gets_a_column() -> None:
    assert "prune.scope" not in result_table(ROWS).titles
    rows = [
        row(0.3, 0.9, settings={"prune.steps": steps, "prune.sparsity": 0.3}) for steps in (1, 8)
    ]
    assert cells(rows, "prune.steps") == ("1", "8")


def test_equal_dense_rows_are_shown_once() -> None:
    twin = row(0.0, 0.9, method="magnitude / global")
    assert len(result_table([*ROWS, twin]).lines) == 3
    other = row(0.0, 0.91, method="magnitude / global", seed=1)
    assert len(result_table([*ROWS, other]).lines) == 4


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        # The interval of 0.04 is 3.92 standard errors of 0.0102.
        (0.90, "−0.5 (0.5 s.e., noise)"),
        (0.92, "−2.5 (2.4 s.e., differs)"),
        (0.85, "+4.5 (4.4 s.e., differs)"),
    ],
)
def test_published_values_are_judged_by_the_standard_error(reference: float, expected: str) -> None:
    rows = [*ROWS, row(0.3, 0.895, reference=reference, seed=1)]
    assert cells(rows, "vs. published")[-1] == expected
    assert cells(rows, "published")[-1] == f"{100 * reference:.1f} %"


def test_the_standard_error_of_a_row_takes_precedence() -> None:
    rows = [row(0.3, 0.895, reference=0.85, standard_error=0.045)]
    assert cells(rows, "vs. published") == ("+4.5 (1.0 s.e., noise)",)


def test_a_published_value_without_an_interval_is_not_judged() -> None:
    assert cells([row(0.3, 0.895, reference=0.9, low=None)], "vs. published") == ("−0.5",)


def test_the_sweet_spot_is_marked() -> None:
    assert result_table(ROWS).marked == {1}
    assert result_table(ROWS[:1]).marked == frozenset()
    rows = [ROWS[0], row(0.3, 0.895, requested_sparsity=None)]
    assert result_table(rows).marked == {1}


def rendered(rows: list[dict[str, Any]], width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(rows_table(rows, title="T[0]"))
    return capture.get()


def test_the_terminal_shows_cells_and_caption() -> None:
    text = rendered(ROWS)
    assert "54,037" in text
    assert "parameters 66,955,010" in text
    assert "not shown" not in text


def test_a_narrow_terminal_drops_the_least_important_columns_and_names_them() -> None:
    lines = rendered(ROWS, 80).splitlines()
    text = " ".join(lines)
    assert max(len(line) for line in lines) <= 80
    assert "not shown: " in text
    assert "non-zero" in text[text.index("not shown") :]
    assert "magnitude / layer" in text
    assert "…" not in text


def test_cells_are_not_interpreted_as_markup() -> None:
    assert "[bold]x[/bold]" in rendered([row(0.3, 0.9, method="[bold]x[/bold]")])


def test_markdown_has_one_line_per_row_and_marks_the_sweet_spot() -> None:
    lines = markdown_table(ROWS).splitlines()
    assert lines[0].startswith("| method | sparsity | of model |")
    assert lines[1].startswith("|---|---:|---:|")
    assert lines[3].startswith("| **magnitude / layer** | **30.0 %** |")
    assert lines[4].startswith("| magnitude / layer | 50.0 % |")
    assert lines[-1].startswith("In every row: seed 0")
    assert "a\\|b c" in markdown_table([row(0.3, 0.9, note="a|b\nc")])
    assert markdown_table([]) == ""


def test_csv_holds_every_field_and_reads_back(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        row(
            0.8, 0.7, steps=[{"step": "prune"}], extra='say "hi", now', settings={"prune.steps": 3}
        ),
    ]
    path = write_csv(rows, tmp_path / "results.csv")
    back = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [float(line["value"]) for line in back] == [0.9, 0.895, 0.8, 0.7]
    assert back[0]["settings.prune.scope"] == "layer"
    assert (back[0]["settings.prune.steps"], back[3]["settings.prune.steps"]) == ("", "3")
    assert back[3]["extra"] == 'say "hi", now'
    assert back[0]["other_metrics.f1"] == "0.9"
    assert back[0]["macs"] == ""
    assert not {"layers", "steps"} & set(back[3])
    assert csv_text([]).strip() == ""


def test_shares_of_integers_are_shown_where_a_model_was_quantized() -> None:
    done = {"step": "quantize", "share_of_bytes": 0.9986, "share_of_macs": 0.974}
    rows = [row(0.0, 0.9, steps=[{"step": "prune"}, done]), row(0.0, 0.8, steps=[])]
    assert cells(rows, "bytes in int8") == ("99.9 %", "")
    assert cells(rows, "MACs in int8") == ("97.4 %", "")


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\n=1"),
        ("-0.5", "-0.5"),
        (-0.5, "-0.5"),
        ("a=1", "a=1"),
        ("plain, text", "plain, text"),
    ],
)
def test_a_spreadsheet_runs_no_cell(value: object, cell: str) -> None:
    text = csv_text([{"method": value, "settings": {"=evil": value}}])
    header, row = csv.reader(io.StringIO(text, newline=""))
    assert header == ["method", "settings.=evil"]
    assert row == [cell, cell]


def test_markdown_shows_names_as_they_are() -> None:
    name = "[x](http://y) <b> `c` *d* $e$ | f\n# g"
    text = markdown_table([{"method": name, "metric": "accuracy", "value": 0.5}])
    line = text.splitlines()[2]
    assert r"\[x\](http://y) \<b\> \`c\` \*d\* \$e\$ \| f \# g" in line


def test_the_terminal_shows_names_as_they_are() -> None:
    name = "[/x] :bug: \x1b[2J [bold]"
    rows = [{"method": name, "metric": "accuracy", "value": 0.5, "actual_sparsity": 0.5}]
    for markup in (True, False):
        stream = io.StringIO()
        Console(file=stream, width=200, markup=markup).print(rows_table(rows, title=name))
        assert stream.getvalue().count(r"[/x] :bug: \x1b[2J [bold]") == 2
        assert "\x1b" not in stream.getvalue()


def test_published_figures_are_compared_with_their_own_n() -> None:
    ours = {"metric": "accuracy", "value": 0.9, "standard_error": 0.01, "n": 1000,
            "reference": 0.876, "requested_sparsity": 0.5, "actual_sparsity": 0.5}  # fmt: skip
    (cell,) = cells([ours], "vs. published")
    assert cell == "+2.4 (2.4 s.e., differs)"
    (cell,) = cells([{**ours, "reference_n": 500}], "vs. published")
    assert cell == "+2.4 (1.4 s.e., noise)"
    assert published_sentence([ours]) == ""
    assert published_sentence([{**ours, "reference_n": 1000}]) == ""
    sentence = published_sentence([{**ours, "reference_n": 500}])
    assert "500 examples and these of 1,000" in sentence
    assert "--set data.max_eval=500" in sentence
