from __future__ import annotations

from pathlib import Path
from typing import Any

from hfcompress.report.scatter import (
    draw_speedups,
    pareto_front,
    speedup_figure,
    speedup_sentence,
    timed_models,
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


def test_the_pareto_front_has_the_models_that_no_faster_one_beats() -> None:
    models = timed_models(ROWS)
    assert len(models) == 5
    assert [(m.speedup, m.point.value) for m in pareto_front(models)] == [
        (6, 0.6),
        (4, 0.85),
        (2, 0.89),
    ]


def test_speedups_use_the_latency_of_the_row_s_own_dense_model() -> None:
    (model,) = timed_models([row("shrink", 0.8, 6.0, dense=24.0)])
    assert model.speedup == 4.0


def test_speedups_of_paired_rounds_are_those_of_the_tables() -> None:
    one = row("quantize", 0.8, 2.0, dense=18.0)
    one["timings"] = [{"measured": {"median": 2.0}, "speedup": {"median": 8.7}}]
    (model,) = timed_models([one])
    assert model.speedup == 8.7
    (model,) = timed_models([{**one, "latency": {"measured": 3.0, "dense": 18.0}}])
    assert model.speedup == 6.0  # a step's own time


def test_the_figure_shows_methods_dense_and_pareto_front() -> None:
    labels = speedup_figure(ROWS).axes[0].get_legend_handles_labels()[1]
    assert set(labels) == {"shrink", "shrink, magnitude", "Pareto front", "dense, 90.0 %"}
    assert draw_speedups([]).startswith(b"\x89PNG")


def test_the_sentence_names_the_fastest_model_within_the_interval() -> None:
    dense = {**row("dense", 0.9, None), "low": 0.88, "high": 0.92}
    assert speedup_sentence([dense, *ROWS]).startswith(
        "Fastest within noise of the dense model: shrink, 2.0 times faster (6 ms)"
    )
    assert "(−1.0 against the dense model)" in speedup_sentence([dense, *ROWS])
    assert speedup_sentence([]) == "No model was timed together with the dense model."


def test_a_report_with_latencies_shows_the_pareto_front(tmp_path: Path) -> None:
    write_report(ROWS, tmp_path)
    assert (tmp_path / "front.png").is_file()
    assert "with the Pareto front" in (tmp_path / "report.html").read_text()
    write_report([row("prune", 0.8, None)], tmp_path / "other")
    assert not (tmp_path / "other" / "front.png").exists()
    assert "with the Pareto front" not in (tmp_path / "other" / "report.html").read_text()
