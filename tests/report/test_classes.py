"""Accuracy per class in the report: shown row, sentence, table and figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hfcompress.report.classes import (
    MAX_SHOWN,
    class_figure,
    class_sentence,
    class_table,
    draw_classes,
    shown_row,
    worst_class,
)
from hfcompress.report.page import html_page, shipped_row
from hfcompress.report.table import result_table
from hfcompress.report.write import write_report


def entry(name: str, dense: float, value: float, n: int = 1000) -> dict[str, Any]:
    return {"name": name, "n": n, "dense": dense, "value": value}


def row(sparsity: float, drop: float, *classes: dict[str, Any], p: float = 0.5) -> dict[str, Any]:
    return {
        "method": "magnitude", "requested_sparsity": sparsity, "actual_sparsity": sparsity,
        "metric": "accuracy", "value": 0.9 - drop, "drop": drop, "low": 0.88 - drop,
        "high": 0.92 - drop, "mcnemar_p": p, "classes": list(classes),
    }  # fmt: skip


DENSE = row(0.0, 0.0, entry("shirt", 0.8, 0.8), entry("bag", 0.95, 0.95), entry("rare", 0.7, 0.7))
HALF = row(0.5, 0.0, entry("shirt", 0.8, 0.79), entry("bag", 0.95, 0.96), entry("rare", 0.7, 0.69))
MOST = row(0.9, 0.1, entry("shirt", 0.8, 0.6), entry("bag", 0.95, 0.94),
           entry("rare", 0.7, 0.2, n=40), p=0.0)  # fmt: skip


def test_the_shown_row_is_the_sweet_spot_or_the_smallest_drop() -> None:
    assert shown_row([DENSE, HALF, MOST]) is HALF
    assert shown_row([DENSE, MOST]) is MOST
    assert shown_row([DENSE]) is None


def test_the_sentence_names_the_classes_that_lose_most() -> None:
    sentence = class_sentence([DENSE, MOST])
    assert sentence == (
        "The classes that lose most are rare (50.0 points, 40 examples), shirt (20.0 points, "
        "1,000 examples); magnitude, 90% sparsity loses 11.3 points on average."
    )
    assert str(class_sentence([DENSE, HALF])).startswith("No class loses more than noise")
    assert class_sentence([DENSE]) is None
    assert class_sentence([{"value": 0.9}]) is None


def test_a_small_class_needs_a_larger_drop() -> None:
    few = row(0.9, 0.1, entry("few", 0.5, 0.4, n=10), entry("many", 0.5, 0.4, n=4000), p=0.0)
    sentence = str(class_sentence([DENSE, few]))
    assert "many" in sentence
    assert "few (" not in sentence


def test_the_table_lists_classes_and_the_column_the_worst_one() -> None:
    assert class_table([DENSE, MOST])[0] == ("shirt", "1,000", "80.0%", "60.0%", "20.0")
    assert class_table([DENSE, HALF])[1] == ("bag", "1,000", "95.0%", "96.0%", "−1.0")
    assert [worst_class(part) for part in (DENSE, HALF, MOST)] == ["", "shirt −1.0", "rare −50.0"]
    assert "worst class" in result_table([DENSE, MOST]).titles
    assert "worst class" not in result_table([{"value": 0.9, "method": "x"}]).titles


def test_of_many_classes_those_with_the_largest_drop_are_shown() -> None:
    many = row(0.9, 0.1, *(entry(f"c{i}", 0.9, 0.9 - i / 100) for i in range(50)), p=0.0)
    shown = class_table([DENSE, many])
    assert len(shown) == MAX_SHOWN
    assert shown[0][0] == "c49"
    assert len(class_figure(many).axes[0].patches) == 2 * MAX_SHOWN


def test_the_figure_has_bars_of_both_models() -> None:
    axes = class_figure(MOST).axes[0]
    heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert heights == pytest.approx([80, 95, 70, 60, 94, 20])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["shirt", "bag", "rare"]
    assert draw_classes([DENSE]) is None


def test_partial_classes_are_left_out() -> None:
    broken = {**MOST, "classes": [{"name": "x"}, {"n": 0, "dense": 1, "value": 1}, "text"]}
    assert class_table([DENSE, broken]) == []


def test_the_report_shows_classes(tmp_path: Path) -> None:
    written = write_report([DENSE, MOST], tmp_path)
    assert tmp_path / "classes.png" in written
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Class by class" in page
    assert "The classes that lose most are rare" in page
    write_report([{**MOST, "classes": []}], tmp_path / "none")
    assert not (tmp_path / "none" / "classes.png").exists()


def test_the_classes_are_those_of_the_model_that_the_headline_names(tmp_path: Path) -> None:
    first = {**row(0.3, 0.0, entry("a", 0.9, 0.9), entry("b", 0.9, 0.9)), "hash": "first"}
    last = {**row(0.5, 0.4, entry("a", 0.9, 0.1), entry("b", 0.9, 0.9)), "hash": "last"}
    pipeline = [
        {**first, "steps": [{"step": "prune"}]},
        {**last, "steps": [{"step": "prune"}, {"step": "quantize"}]},
    ]
    assert shipped_row(pipeline) is pipeline[1]
    assert shipped_row(pipeline, "first") is pipeline[0]
    assert "The classes that lose most are a (80.0 points" in html_page(pipeline)
    sizes = [
        {**DENSE, "bytes": 100},
        *({**one, "bytes": size, "requested_sparsity": None, "mcnemar_p": 0.5}
          for one, size in ((first, 50), (last, 10))),
    ]  # fmt: skip
    assert shipped_row(sizes) is sizes[1]  # the smallest within noise
    timed = [
        {**one, "requested_sparsity": None, "latency": {"dense": 10.0, "measured": time}}
        for one, time in ((DENSE, 10.0), (first, 5.0), (last, 2.0))
    ]
    assert shipped_row(timed) is timed[1]
