"""The ``shrink`` step: budgets met, recovery after it and between rounds, rows that say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from hfcompress.errors import ConfigError
from hfcompress.measure.size import count_parameters
from hfcompress.shrinking.shrink import shrink
from hfcompress.steps import shrink as shrinking
from hfcompress.sweep import trial

HALF = {"macs": 0.5, "calibration_rows": 24}
FAST = {"max_steps": 8, "batch_size": 8, "learning_rate": 5e-3}


def test_a_shrunk_model_recovers_and_reloads(one: Callable[..., Any], tmp_path: Path) -> None:
    shrunk = one({"shrink": HALF})
    distillation = {"hidden_weight": 1.0}
    training = {**FAST, "task_loss_weight": 0, "distillation": distillation}
    row = one({"shrink": HALF}, {"recover": training}, output=tmp_path / "run", save_models=True)
    assert shrunk["macs"] < 0.7 * one({"shrink": {"macs": 1.0}})["macs"]
    assert (row["parameters"], row["macs"]) == (shrunk["parameters"], shrunk["macs"])
    assert row["weights_hash"] != shrunk["weights_hash"]
    (folder,) = (tmp_path / "run" / "models").iterdir()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert count_parameters(model) == row["parameters"]


def test_distillation_follows_shrinking(one: Callable[..., Any]) -> None:
    shrunk = one({"shrink": HALF})
    row = one({"shrink": HALF}, {"distill": {**FAST, "distillation": {"alpha": 1}}})
    assert row["parameters"] == shrunk["parameters"]
    assert row["weights_hash"] != shrunk["weights_hash"]


def test_what_took_long_before_a_training_is_kept(
    one: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def spied(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return shrink(*args, **kwargs)

    monkeypatch.setattr(shrinking, "shrink", spied)
    first = one({"shrink": HALF}, {"recover": FAST})
    one({"shrink": HALF}, {"recover": {**FAST, "max_steps": 9}})
    assert len(calls) == 2  # quick as it is, it is done again
    monkeypatch.setattr(trial, "KEEP_AFTER", 0.0)
    for steps in (10, 11, 12):
        again = one({"shrink": HALF}, {"recover": {**FAST, "max_steps": steps}})
    assert len(calls) == 3
    assert again["steps"][0] == first["steps"][0]
    assert again["parameters"] == first["parameters"]
    for _ in range(2):
        one({"shrink": {**HALF, "seed": 1}})
    assert len(calls) == 5  # its row is kept, and nothing follows


def test_recovery_between_rounds_changes_the_result(one: Callable[..., Any]) -> None:
    rounds = {**HALF, "rounds": 2}
    plain, trained = one({"shrink": rounds}), one({"shrink": {**rounds, "recover": FAST}})
    assert plain["weights_hash"] != trained["weights_hash"]
    assert trained["steps"][0]["macs"]["shrunk"] <= 0.5 * trained["steps"][0]["macs"]["dense"]


def test_new_text_to_calibrate_on_changes_the_result(one: Callable[..., Any]) -> None:
    plain, more = one({"shrink": HALF}), one({"shrink": {**HALF, "augmented_rows": 16}})
    assert plain["weights_hash"] != more["weights_hash"]
    with pytest.raises(ConfigError, match="augmented rows have no labels"):
        one({"shrink": {**HALF, "augmented_rows": 16, "score": "taylor"}})


def test_a_latency_stands_in_the_row(one: Callable[..., Any]) -> None:
    row = one({"shrink": {"speedup": 1.01, "length": 8, "calibration_rows": 24}})
    assert row["latency"]["measured"] > 0
    assert row["latency"] == row["steps"][0]["latency"]
    assert one({"shrink": HALF})["latency"] is None


def test_what_cannot_be_done_is_refused_before_anything_runs(one: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"steps\[0\].shrink: give one budget"):
        one({"shrink": {}})
    with pytest.raises(ConfigError, match="recover trains between rounds"):
        one({"shrink": {**HALF, "recover": FAST}})
    with pytest.raises(ConfigError, match="did you mean 'macs'"):
        one({"shrink": {"mac": 0.5}})


def test_a_dense_model_has_nothing_to_recover(one: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="would prune nothing"):
        one({"recover": FAST})
