"""Training in bf16: models are measured in their own precision, processors without take fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcompress.sweep.results import RunDirectory


def test_what_was_just_trained_is_measured_as_what_was_kept(
    one: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfcompress.steps.training.slow_bf16", lambda: None)
    step = {"finetune": {"max_steps": 3, "batch_size": 8, "bf16": True}}
    logits: list[Any] = []
    for name in ("first", "second"):  # the second finds the trained model in the cache
        row = one(step, output=tmp_path / name, measure={"precision": "fp32"})
        logits.append(RunDirectory(tmp_path / name).load_predictions(row["hash"]))
    assert np.array_equal(logits[0], logits[1])


@pytest.mark.parametrize("abilities", [{"avx2": True}, {"avx2": True, "avx512_bf16": True}, {}])
def test_a_processor_without_bf16_trains_in_fp32_and_says_so(
    abilities: dict[str, bool],
    one: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hfcompress.measure.environment.cpu_abilities", lambda: abilities)
    notes: list[str] = []
    monkeypatch.setattr("hfcompress.utils.Progress.note", lambda _, text: notes.append(text))
    loss: dict[str, Any] = {"alpha": 1}
    fields: dict[str, Any] = {"student": {"layers": 1}, "max_steps": 2, "batch_size": 8}
    rounded = {**fields, "bf16": True, "distillation": {**loss, "teacher_precision": "bf16"}}
    plain = one({"distill": {**fields, "distillation": loss}})
    assert not notes
    asked = one({"distill": rounded})
    falls_back = abilities == {"avx2": True}
    assert (asked["weights_hash"] == plain["weights_hash"]) == falls_back
    assert sum("no bf16 instructions" in text for text in notes) == falls_back  # once
