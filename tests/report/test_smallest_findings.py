"""Findings and figure of models that differ by file size."""

from __future__ import annotations

from typing import Any

import pytest

from hfcompress.report.curve import curve_figure
from hfcompress.report.findings import is_about_size, smallest, smallest_sentence
from hfcompress.report.page import headline
from hfcompress.report.table import result_table


def row(method: str, megabytes: float | None, value: float, **fields: Any) -> dict[str, Any]:
    """A quantized model against a dense one at 0.80, an interval of four points each."""
    return {
        "method": method,
        "requested_sparsity": None,
        "actual_sparsity": 0.013,
        "metric": "accuracy",
        "value": value,
        "low": value - 0.02,
        "high": value + 0.02,
        "drop": 0.80 - value,
        "bytes": None if megabytes is None else round(megabytes * 1e6),
        **fields,
    }


DENSE = row("dense", 90.0, 0.80, requested_sparsity=0, actual_sparsity=0)


def test_the_smallest_within_noise_is_headline_and_marked_row() -> None:
    rows = [
        DENSE,
        row("quantize", 23.0, 0.80),
        row("quantize, max_kl 0.01", 20.0, 0.795),
        row("quantize", 9.0, 0.70),  # a clear loss
    ]
    assert smallest(rows) == 2
    expected = (
        "Smallest within noise: quantize, max_kl 0.01, 20.0 MB: accuracy 79.5 % against 80.0 %"
    )
    assert headline(rows) == f"{expected} dense, a loss of 0.5 points (noise ±2.0)."
    assert result_table(rows).marked == {2}


def test_equal_sizes_are_decided_by_the_metric() -> None:
    rows = [DENSE, row("a", 20.0, 0.79), row("b", 20.0, 0.80), row("c", None, 0.80)]
    assert smallest(rows) == 2
    assert smallest_sentence(rows).endswith("against 80.0 % dense, nothing lost.")


def test_the_headline_says_that_no_model_is_within_noise() -> None:
    assert headline([DENSE, row("quantize", 20.0, 0.70)]) == (
        "No measured model stays within noise of the dense model (accuracy 80.0 %)."
    )
    alone = row("quantize", 20.0, 0.70, drop=None)
    assert smallest([alone]) is None
    assert headline([alone]) == "No dense model was measured, so no drop can be judged."


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [DENSE],
        [DENSE, row("quantize", None, 0.80)],
        [DENSE, row("quantize", 20.0, 0.80), row("magnitude", 90.0, 0.80, requested_sparsity=0.5)],
    ],
)
def test_rows_that_request_a_sparsity_are_not_about_size(rows: list[dict[str, Any]]) -> None:
    assert not is_about_size(rows)


def test_the_figure_is_the_metric_against_megabytes() -> None:
    rows = [
        row("quantize", 23.0, 0.80, compression_ratio=4.0),
        row("quantize, openvino", 9.0, 0.70),
    ]
    [axes] = curve_figure(rows).axes
    assert axes.get_xlabel() == "size of the model's files (MB)"
    handles, labels = axes.get_legend_handles_labels()
    drawn = dict(zip(labels, handles, strict=True))
    assert set(drawn) == {
        "quantize",
        "quantize, openvino",
        "dense, 80.0 %",
        "smallest within noise",
    }
    assert list(drawn["dense, 80.0 %"].get_xdata()) == [92.0]
    assert list(drawn["smallest within noise"].get_xdata()) == [23.0]
    assert list(drawn["smallest within noise"].get_ydata()) == [80.0]


def test_a_sparsity_sweep_is_drawn_against_sparsity() -> None:
    [axes] = curve_figure([DENSE, row("magnitude", 90.0, 0.80, requested_sparsity=0.5)]).axes
    assert "sparsity" in axes.get_xlabel()
