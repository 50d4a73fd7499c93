from __future__ import annotations

from typing import Any

import pytest

from hfcompress.report.findings import sweet_spot, sweet_spot_sentence, within_noise
from hfcompress.report.rows import compressed_points, dense_point, metric_text, points_text


def row(sparsity: float, value: float, p: float | None = None, **fields: Any) -> dict[str, Any]:
    """A row against a dense model at 0.80 with an interval of 0.78 to 0.82."""
    return {
        "method": "magnitude / layer",
        "requested_sparsity": sparsity,
        "actual_sparsity": sparsity,
        "metric": "accuracy",
        "value": value,
        "low": value - 0.02,
        "high": value + 0.02,
        "drop": 0.80 - value,
        "mcnemar_p": p,
        "seed": 0,
        **fields,
    }


DENSE = row(0.0, 0.80, 1.0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"value": 0.81, "p": 0.001}, True),  # a gain is never a loss
        ({"value": 0.79, "p": 0.05}, True),
        ({"value": 0.79, "p": 0.049}, False),
        ({"value": 0.779, "p": 0.5}, False),  # beyond the dense model's half width
        ({"value": 0.79, "p": None}, True),  # the interval alone
        ({"value": 0.775, "p": None}, False),
    ],
)
def test_within_noise_needs_mcnemar_and_interval(fields: dict[str, Any], expected: bool) -> None:
    rows = [DENSE, row(0.5, **fields)]
    dense = dense_point(rows)
    assert dense is not None
    [point] = compressed_points(rows)["magnitude / layer"]
    assert within_noise(point, dense) is expected


def test_a_drop_without_any_test_is_not_noise() -> None:
    rows = [row(0.5, 0.799, low=None, high=None)]
    assert sweet_spot(rows) is None
    assert sweet_spot([row(0.5, 0.801, low=None, high=None)]) is not None


def test_the_dense_value_is_computed_from_the_drop_without_a_dense_row() -> None:
    best = sweet_spot([row(0.5, 0.79, 0.5)])
    assert best is not None
    assert best.sparsity == 0.5


def test_the_highest_sparsity_before_the_first_loss_is_taken() -> None:
    rows = [DENSE, row(0.6, 0.79, 0.5), row(0.3, 0.80, 1.0), row(0.5, 0.70, 0.001)]
    best = sweet_spot(rows)
    assert best is not None
    assert best.sparsity == 0.3


def test_equal_sparsities_are_decided_by_the_metric() -> None:
    rows = [
        DENSE,
        row(0.5, 0.79, 0.5),
        row(0.5, 0.795, 0.5, method="magnitude / global", actual_sparsity=0.4999999),
    ]
    best = sweet_spot(rows)
    assert best is not None
    assert best.method == "magnitude / global"


def test_seeds_are_averaged_and_p_is_their_median() -> None:
    values = [(0.77, 0.01), (0.79, 0.30), (0.80, 0.90)]
    rows = [DENSE, *(row(0.5, value, p, seed=i) for i, (value, p) in enumerate(values))]
    best = sweet_spot(rows)
    assert best is not None
    assert best.values == (0.77, 0.79, 0.80)
    assert best.value == pytest.approx(0.786667, abs=1e-6)
    assert best.p == 0.30
    # With one more bad seed the median falls below 0.05.
    assert sweet_spot([*rows, row(0.5, 0.77, 0.01, seed=3), row(0.5, 0.8, 0.01, seed=4)]) is None


def test_sentences_for_every_outcome() -> None:
    found = [DENSE, row(0.5, 0.79, 0.43)]
    assert sweet_spot_sentence(found) == (
        "Sweet spot: 50.0 % sparsity with magnitude / layer: accuracy 79.0 % against 80.0 % dense, "
        "a loss of 1.0 points (noise ±2.0, McNemar p = 0.43)."
    )
    assert sweet_spot_sentence([DENSE, row(0.5, 0.81, 0.4)]).endswith("nothing lost.")
    assert "No measured sparsity" in sweet_spot_sentence([DENSE, row(0.5, 0.6, 0.0)])
    assert sweet_spot_sentence([DENSE]) == "Only the dense model was measured: accuracy 80.0 %."
    assert "No dense model" in sweet_spot_sentence([])
    assert "No dense model" in sweet_spot_sentence([{"method": "wanda"}])


def test_a_run_that_only_trains_is_dense() -> None:
    rows = [row(0.0, 0.80, requested_sparsity=None, method="dense, epochs 3")]
    assert sweet_spot_sentence(rows) == "Only the dense model was measured: accuracy 80.0 %."


def test_rows_without_a_request_are_placed_by_their_actual_sparsity() -> None:
    rows = [DENSE, row(0.0, 0.79, 0.5, requested_sparsity=None, actual_sparsity=0.4321)]
    best = sweet_spot(rows)
    assert best is not None
    assert (best.requested, best.sparsity) == (None, 0.4321)


def test_metrics_and_differences_are_formatted() -> None:
    assert metric_text("accuracy", 0.8681) == "86.8 %"
    assert metric_text("matthews_correlation", 0.8681) == "0.868"
    assert metric_text("accuracy", None) == ""
    assert points_text("accuracy", -0.0131) == "−1.3"
    assert points_text("accuracy", 0.0131) == "+1.3"
    assert points_text("accuracy", -0.0001) == "0.0"
    assert points_text("matthews_correlation", 0.0131) == "+0.013"
    assert points_text("f1", None) == ""
