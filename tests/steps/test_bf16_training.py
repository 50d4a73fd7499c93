"""A model trained in bf16 is measured and exported in its own precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.sweep.results import RunDirectory


def test_what_was_just_trained_is_measured_as_what_was_kept(
    one: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    step = {"finetune": {"max_steps": 3, "batch_size": 8, "bf16": True}}
    logits: list[Any] = []
    for name in ("first", "second"):  # the second finds the trained model in the cache
        row = one(step, output=tmp_path / name, measure={"precision": "fp32"})
        logits.append(RunDirectory(tmp_path / name).load_predictions(row["hash"]))
    assert np.array_equal(logits[0], logits[1])
