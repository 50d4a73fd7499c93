from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import bdtr

from hfcompress.measure.evaluation import compare, count_folds
from hfcompress.report.findings import (
    cross_validated_loss,
    sweet_spot,
    sweet_spot_sentence,
    within_noise,
)
from hfcompress.report.page import headline
from hfcompress.report.rows import (
    compressed_points,
    dense_point,
    is_below_chance,
    majority_of,
    metric_text,
    points_text,
)


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
        "a loss of 1.0 points (noise ±2.0, p = 0.43)."
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


@pytest.mark.parametrize(
    ("dense", "fields", "expected"),
    [
        ({}, {"agreement": 0.98}, True),
        ({}, {"agreement": 0.75}, True),
        ({}, {"agreement": 0.74}, False),
        ({}, {"agreement": 0.0}, False),
        ({}, {"agreement": 0.94, "majority": 0.9}, False),
        ({}, {"agreement": 0.6, "majority": 0.1}, True),
        ({"chance": 0.79}, {"chance": 0.79}, False),  # the dense model is not surely above it
        ({"chance": 0.77}, {"chance": 0.77}, True),
        ({"chance": 0.77}, {"chance": 0.77, "value": 0.76, "drop": -0.01}, False),
        ({"chance": 0.5, "value": 0.5, "low": 0.45, "high": 0.55}, {"chance": 0.5}, False),
    ],
)
def test_a_model_that_is_within_noise_agrees_and_is_above_chance(
    dense: dict[str, Any], fields: dict[str, Any], expected: bool
) -> None:
    rows = [{**DENSE, **dense}, {**row(0.5, 0.80, 1.0), **fields}]
    assert (sweet_spot(rows) is not None) is expected
    assert ("Sweet spot:" in sweet_spot_sentence(rows)) is expected


def test_the_chance_level_is_known_from_the_classes() -> None:
    classes = [{"name": name, "n": n} for name, n in (("a", 79), ("b", 11), ("c", 10))]
    rows = [{**one, "classes": classes} for one in (DENSE, row(0.5, 0.80, 1.0, chance=0.79))]
    assert rows[0].get("chance") is None
    assert sweet_spot([{**one, "chance": 0.79} for one in rows]) is None
    assert majority_of(rows[0]) == 0.79


def test_the_headline_says_why_there_is_no_sweet_spot() -> None:
    half = {"value": 0.5, "low": 0.43, "high": 0.57, "drop": 0.0, "chance": 0.5}
    rows = [{**DENSE, **half}, {**row(0.5, 0.5, 1.0), **half, "agreement": 1.0}]
    assert "is not above chance level (accuracy 50.0 %, and 50.0 %" in headline(rows)
    apart = [DENSE, row(0.5, 0.80, 1.0, agreement=0.3)]
    assert "one of equal accuracy answers as it does on 30 % only" in headline(apart)
    swapped = [{**one, "value": 0.1, "low": 0.08, "high": 0.12, "chance": 0.5} for one in rows]
    assert "below chance level (accuracy 10.0 %): labels may be swapped" in headline(swapped)
    assert "chance" not in headline([DENSE, row(0.5, 0.80, 1.0)])


@pytest.mark.parametrize(
    ("metric", "high", "classes", "below"),
    [
        ("accuracy", 0.49, 0, True),
        ("accuracy", 0.51, 0, False),
        ("accuracy", 0.3, 4, False),
        ("accuracy", 0.2, 4, True),
        ("matthews_correlation", -0.1, 0, True),
        ("matthews_correlation", 0.1, 0, False),
        ("f1", 0.1, 0, False),
    ],
)
def test_what_is_below_guessing(metric: str, high: float, classes: int, below: bool) -> None:
    entries = [{"name": str(place), "n": 10} for place in range(classes)]
    assert is_below_chance({"metric": metric, "high": high, "classes": entries}) is below


def test_rows_to_choose_on_decide_and_the_measured_ones_are_reported() -> None:
    def chosen_row(sparsity: float, value: float, chosen: float) -> dict[str, Any]:
        drop, lost = 0.9 - value, 0.9 - chosen
        made = {"method": "magnitude", "requested_sparsity": sparsity, "metric": "accuracy",
                "actual_sparsity": sparsity, "value": value, "low": value - 0.02,
                "high": value + 0.02, "drop": drop, "mcnemar_p": 0.5 if drop < 0.02 else 0.001,
                "n": 900}  # fmt: skip
        choice = {"value": chosen, "low": chosen - 0.02, "high": chosen + 0.02, "drop": lost,
                  "mcnemar_p": 0.5 if lost < 0.02 else 0.001, "n": 700}  # fmt: skip
        return {**made, "choice": choice}

    rows = [chosen_row(0.0, 0.9, 0.9), chosen_row(0.5, 0.889, 0.9), chosen_row(0.8, 0.9, 0.8)]
    measured = [{key: value for key, value in one.items() if key != "choice"} for one in rows]
    by_measured, by_choice = sweet_spot(measured), sweet_spot(rows)
    assert by_measured is not None
    assert by_choice is not None
    assert by_measured.requested == 0.8
    assert (by_choice.requested, by_choice.value) == (0.5, 0.889)
    assert "(chosen on 700 rows of their own)" in sweet_spot_sentence(rows)
    assert "chosen on" not in sweet_spot_sentence(measured)
    count = len(measured) - 1  # the dense one
    assert f"(the best of {count} on these rows, which flatters it" in sweet_spot_sentence(measured)
    assert "flatters" not in sweet_spot_sentence(measured[:2])


def _measured(loss: float, trials: int, seed: int, n: int = 872) -> list[dict[str, Any]]:
    """Rows of a dense model of 90 % and of trials of which each loses as much in truth."""
    return _rows_of([(f"method {trial}", 0.5, loss) for trial in range(1, trials + 1)], seed, n)


def _rows_of(
    trials: list[tuple[str, float, float]], seed: int, n: int = 872
) -> list[dict[str, Any]]:
    """Rows of a dense model of 90 %, and of trials: method, sparsity, and the loss in truth."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    dense = np.where(rng.random(n) < 0.9, labels, 1 - labels)
    rows: list[dict[str, Any]] = []
    for method, sparsity, loss in [("dense", 0.0, 0.0), *trials]:
        chance = np.where(dense == labels, (0.03 + loss) / 0.9, 0.03 / 0.1)
        own = np.where(rng.random(n) < chance, 1 - dense, dense) if sparsity else dense
        folds = count_folds(own, dense, labels)
        lost, gained = sum(folds["lost"]), sum(folds["gained"])
        value = sum(folds["right"]) / n
        half = 1.96 * np.sqrt(value * (1 - value) / n)
        p_value = min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))
        rows.append(
            {
                "method": method, "requested_sparsity": sparsity,
                "actual_sparsity": sparsity, "metric": "accuracy", "value": value, "n": n,
                "low": value - half, "high": value + half, "drop": (lost - gained) / n,
                "mcnemar_p": p_value, "agreement": sum(folds["agree"]) / n, "folds": folds,
            }
        )  # fmt: skip
    return rows


def test_the_cross_validated_loss_is_that_of_new_rows_where_the_best_of_many_looks_better() -> None:
    flattered, honest = [], []
    for seed in range(40):
        rows = _measured(0.01, 12, seed)
        best, lost = sweet_spot(rows), cross_validated_loss(rows)
        assert lost is not None
        flattered.append(best.drop if best and best.drop is not None else 0.0)
        honest.append(lost)
    assert np.mean(flattered) < 0  # no loss to be seen, and a gain of luck
    assert abs(np.mean(honest) - 0.01) < 3 * np.std(honest) / np.sqrt(len(honest))
    assert np.std(honest) / np.sqrt(len(honest)) < 0.003


def test_choosing_on_all_rows_is_as_good_as_on_a_share_of_many_and_better_than_of_few() -> None:
    losses = {0.3: 0.0, 0.4: 0.002, 0.5: 0.005, 0.6: 0.01, 0.7: 0.02, 0.8: 0.04, 0.9: 0.1}
    trials = [(f"{times}", sparsity, times * loss) for times in (1, 2)
              for sparsity, loss in losses.items()]  # fmt: skip
    truth = {(method, sparsity): loss for method, sparsity, loss in trials}
    measured = [_rows_of(trials, seed) for seed in range(30)]

    def in_truth(n: int | None) -> float:
        """What the sweet spot loses in truth, chosen on other rows or (None) on the measured."""
        found = []
        for seed, rows in enumerate(measured):
            other = rows if n is None else _rows_of(trials, 1000 + seed, n)
            keys = ("value", "low", "high", "drop", "mcnemar_p", "agreement", "n")
            best = sweet_spot(
                [{**row, "choice": {key: one[key] for key in keys}}
                 for row, one in zip(rows, other, strict=True)]
            )  # fmt: skip
            found.append(0.0 if best is None else truth[best.method, best.requested or 0.0])
        return float(np.mean(found))

    of_all = in_truth(None)
    said = float(np.mean([cross_validated_loss(rows) or 0.0 for rows in measured]))
    spots = [spot for rows in measured if (spot := sweet_spot(rows)) is not None]
    seen = float(np.mean([spot.drop or 0.0 for spot in spots]))
    assert abs(in_truth(692) - of_all) < 0.005  # a tenth of SST-2's 6,920 training rows
    assert in_truth(87) > 2 * of_all  # a tenth of 870: too few to see a loss
    assert abs(said - of_all) < 0.004  # what the headline says of the choice
    assert seen < 0.7 * of_all  # the sweet spot's own drop, which flatters


def test_the_cross_validated_loss_by_hand() -> None:
    labels = np.zeros(20, np.int64)
    dense = np.zeros(20, np.int64)
    own, other = dense.copy(), dense.copy()
    own[[0, 10]] = 1  # both in the first fold
    other[[3]] = 1
    rows: list[dict[str, Any]] = [
        {"method": name, "requested_sparsity": sparsity, "actual_sparsity": sparsity,
         **compare("accuracy", found, labels, dense).to_dict()}
        for name, sparsity, found in (("dense", 0.0, dense), ("a", 0.5, own), ("b", 0.5, other))
    ]  # fmt: skip
    assert rows[1]["folds"]["lost"] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    # Chosen without fold 0, a loses nothing and b one: a, which loses 2 there. Without fold 3 b
    # loses nothing and a two: b, which loses 1 there. On the others b is the better one.
    assert cross_validated_loss(rows) == pytest.approx(3 / 20)
    text = sweet_spot_sentence(rows)
    assert "(the best of 2: chosen on nine tenths of the rows and measured on the rest" in text
    assert text.endswith("it loses 15.0 points).")


def test_no_cross_validated_loss_without_counts_for_each_fold() -> None:
    rows = _measured(0.0, 2, 0)
    assert cross_validated_loss(rows) is not None
    assert cross_validated_loss([rows[0], {**rows[1], "folds": None}]) is None
    assert cross_validated_loss(_measured(0.0, 2, 0, n=9)) is None
    assert cross_validated_loss([*rows, *_measured(0.0, 2, 0, n=500)]) is None
    assert cross_validated_loss([]) is None
