from __future__ import annotations

from pathlib import Path
from typing import Any

from hfcompress.report.scatter import (
    draw_front,
    front_figure,
    front_sentence,
    pareto_front,
    timed_points,
)
from hfcompress.report.write import write_report


def row(method: str, value: float, measured: float | None, dense: float = 12.0) -> dict[str, Any]:
    latency = None if measured is None else {"dense": dense, "predicted": 1.0, "measured": measured}
    return {
        "method": method, "metric": "accuracy", "value": value, "drop": 0.9 - value,
        "low": value - 0.02, "high": value + 0.02, "latency": latency, "requested_sparsity": None,
    }  # fmt: skip


ROWS = [
    row("shrink", 0.89, 6.0),
    row("shrink", 0.85, 3.0),
    row("shrink, magnitude", 0.80, 6.0),
    row("shrink, magnitude", 0.84, 4.0),
    row("shrink, magnitude", 0.60, 2.0),
    row("shrink", 0.87, None),
    {"method": "broken"},
]


def test_the_front_is_what_no_other_beats() -> None:
    points = timed_points(ROWS)
    assert len(points) == 5
    assert [(p.speedup, p.value) for p in pareto_front(points)] == [(6, 0.6), (4, 0.85), (2, 0.89)]


def test_speedups_are_taken_beside_the_row_s_own_dense_model() -> None:
    (point,) = timed_points([row("shrink", 0.8, 6.0, dense=24.0)])
    assert point.speedup == 4.0


def test_speedups_are_those_of_the_tables_where_times_were_taken_by_rounds() -> None:
    one = row("quantize", 0.8, 2.0, dense=18.0)
    one["timings"] = [{"measured": {"median": 2.0}, "speedup": {"median": 8.7}}]
    (point,) = timed_points([one])
    assert point.speedup == 8.7
    (point,) = timed_points([{**one, "latency": {"measured": 3.0, "dense": 18.0}}])
    assert point.speedup == 6.0  # a step's own time


def test_the_picture_shows_lines_dense_and_front() -> None:
    labels = front_figure(ROWS).axes[0].get_legend_handles_labels()[1]
    assert set(labels) == {"shrink", "shrink, magnitude", "Pareto front", "dense, 90.0 %"}
    assert draw_front([]).startswith(b"\x89PNG")


def test_the_sentence_names_the_fastest_within_the_interval() -> None:
    dense = {**row("dense", 0.9, None), "low": 0.88, "high": 0.92}
    assert front_sentence([dense, *ROWS]).startswith(
        "Fastest within the dense model's interval: shrink, 2.0 times faster (6 ms)"
    )
    assert "(−1.0)" in front_sentence([dense, *ROWS])
    assert front_sentence([]) == "No latency was measured beside the dense model."


def test_a_report_with_latencies_shows_the_front(tmp_path: Path) -> None:
    write_report(ROWS, tmp_path)
    assert (tmp_path / "front.png").is_file()
    assert "with the Pareto front" in (tmp_path / "report.html").read_text()
    write_report([row("prune", 0.8, None)], tmp_path / "other")
    assert not (tmp_path / "other" / "front.png").exists()
    assert "Pareto" not in (tmp_path / "other" / "report.html").read_text()
