"""A row after each step: as the steps give by hand, shared between trials, timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hfcompress
from hfcompress.errors import ConfigError
from hfcompress.inference import predict
from hfcompress.measure.latency import Latency, LatencyReport
from hfcompress.models.loading import weights_hash
from hfcompress.recipes.schema import expand, parse_recipe
from hfcompress.report.pipeline import is_pipeline, pipeline_sentence, pipeline_table
from hfcompress.steps.registry import run_step
from hfcompress.sweep import timing as timing_module
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import prepare
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import run
from hfcompress.utils import Progress

TRAINING = {"max_steps": 2, "learning_rate": 1e-2, "batch_size": 8}
STEPS: list[dict[str, Any]] = [
    {"finetune": TRAINING},
    {"vocabulary": {}},
    {"shrink": {"macs": 0.5, "calibration_rows": 16}},
    {"distill": {**TRAINING, "distillation": {"alpha": 1}}},
    {"quantize": {"backend": "torch"}},
]


@pytest.fixture
def plan(model_folder: Path, write_data: Callable[..., Path]) -> dict[str, Any]:
    measure = {"every_step": True, "latency": {"length": 8, "repeats": 3, "warmup": 0}}
    data = str(write_data(rows=60))
    return {"model": str(model_folder), "data": data, "steps": STEPS, "measure": measure}


def test_the_rows_are_what_the_steps_give_by_hand(plan: dict[str, Any], tmp_path: Path) -> None:
    recipe = parse_recipe(plan)
    result = run(recipe, tmp_path / "run")
    assert not result.failures, result.failures
    rows = result.rows
    assert [row["method"] for row in rows] == [
        "dense", "vocabulary", "shrink", "distill", "quantize",
    ]  # fmt: skip

    bench = prepare(recipe, Progress(), StepCache(tmp_path / "another cache"))
    trial = bench.trials[-1]
    configs: list[Any] = [step.config for step in trial.steps]
    made: list[tuple[str, Any, int]] = []
    state, teachers = bench.start(trial), [bench.loaded.model]
    for place, config in enumerate(configs):
        context = bench.context(trial, place, state, teachers.copy().pop)
        state, _ = run_step(state, config, context)
        encoded, model = bench.encoding(state).eval, state.model
        if isinstance(model, hfcompress.QuantizedModel):
            made.append((model.engine.digest, model.predict(encoded, 32), model.bytes))
            continue
        size = hfcompress.calculate_model_size(model)
        made.append((weights_hash(model), predict(model, encoded, 32), size))
        if place == 1:
            teachers.append(copy.deepcopy(model))  # the dense model, cut as the rows are

    labels, dense = bench.eval.labels, made[0]
    for row, (digest, logits, size) in zip(rows, made, strict=True):
        assert row["weights_hash"] == digest
        assert row["value"] == float(np.mean(logits.argmax(1) == labels))
        assert row["agreement"] == float(np.mean(logits.argmax(1) == dense[1].argmax(1)))
        assert row["low"] <= row["value"] <= row["high"]
        assert row["bytes"] == size
        assert row["compression_ratio"] == dense[2] / size


def test_a_row_is_the_same_with_and_without_those_before_it(
    plan: dict[str, Any], tmp_path: Path
) -> None:
    plan = {**plan, "steps": STEPS[1:3], "measure": {}}
    (alone,) = run(parse_recipe(plan), tmp_path / "run").rows
    heard: list[dict[str, Any]] = []

    class Heard(Progress):
        def row(self, row: dict[str, Any]) -> None:
            heard.append(row)

    every = parse_recipe({**plan, "measure": {"every_step": True}})
    rows = run(every, tmp_path / "run", Heard()).rows
    assert [row["hash"] for row in rows[2:]] == [alone["hash"]]
    assert len(heard) == 2  # the last row was there


def test_beginnings_that_trials_share_are_one_row(plan: dict[str, Any], tmp_path: Path) -> None:
    steps = [*STEPS[:2], {"prune": {}}, {"quantize": {"backend": "torch"}}]
    grid = {"prune.sparsity": [0.2, 0.6], "seed": [0]}
    recipe = parse_recipe({**plan, "steps": steps, "grid": grid})
    trials = expand(recipe)
    assert [(len(trial.steps), trial.settings) for trial in trials] == [
        (1, {"seed": 0}),
        (2, {"seed": 0}),
        (3, {"prune.sparsity": 0.2, "seed": 0}),
        (4, {"prune.sparsity": 0.2, "seed": 0}),
        (3, {"prune.sparsity": 0.6, "seed": 0}),
        (4, {"prune.sparsity": 0.6, "seed": 0}),
    ]
    assert [trial.index for trial in trials] == list(range(6))
    result = run(recipe, tmp_path / "run")
    assert [row["index"] for row in result.rows] == list(range(6))
    assert "Step by step" in (tmp_path / "run" / "report.html").read_text()


def test_latency_is_taken_beside_the_dense_model_in_torch(
    plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measured(
        calls: dict[str, Any], warmup: int, repeats: int, *, seconds: float, settle: int
    ) -> LatencyReport:
        asked.append((sorted(calls), warmup, repeats))
        for call in calls.values():
            call()
        times = {"dense": (30.0, 40.0, 50.0), "measured": (10.0, 20.0, 10.0)}
        return LatencyReport({name: Latency(times[name]) for name in calls})

    monkeypatch.setattr(timing_module, "measure_latency", measured)
    latency = [{"length": 8, "repeats": 3}, {"batch_size": 4, "length": 5, "warmup": 1}]
    steps = [{"quantize": {"backend": "torch"}}]
    measure = {"every_step": True, "latency": latency}
    dense, row = run(parse_recipe({**plan, "steps": steps, "measure": measure})).rows
    assert asked == [
        (["measured"], 3, 3),
        (["measured"], 1, 20),
        (["dense", "measured"], 3, 3),
        (["dense", "measured"], 1, 20),
    ]
    assert [timing["speedup"]["median"] for timing in dense["timings"]] == [1.0, 1.0]
    first, second = row["timings"]
    assert first["speedup"]["median"] == 3.0
    assert first["dense"]["median"] == 40.0
    assert (first["engine"], dense["timings"][0]["engine"]) == ("torch", "torch")
    assert first["threads"] == torch.get_num_threads()
    assert first["repeats"] == 3
    assert (second["batch_size"], second["length"]) == (4, 5)
    assert row["latency"] == {"dense": 40.0, "measured": 10.0}


def test_a_batch_that_is_too_long_is_refused(plan: dict[str, Any]) -> None:
    plan["measure"]["latency"]["length"] = 65
    with pytest.raises(ConfigError, match="reads 64 tokens at most, not 65; lower length"):
        run(parse_recipe(plan))


def test_the_table_and_the_sentence() -> None:
    timing = {
        "batch_size": 1, "length": 32, "repeats": 20, "threads": 2, "engine": "onnxruntime",
        "measured": {"median": 2.0}, "speedup": {"median": 8.25},
    }  # fmt: skip
    common = {"metric": "accuracy", "low": 0.8, "high": 0.9, "agreement": 1.0}
    dense = {
        **common, "method": "dense", "value": 0.88, "drop": 0.0, "bytes": 90_000_000,
        "compression_ratio": 1.0, "steps": [], "timings": [],
    }  # fmt: skip
    last = {
        **common, "method": "quantize", "value": 0.87, "drop": 0.01, "bytes": 9_000_000,
        "compression_ratio": 10.0, "steps": [{}], "timings": [timing],
    }  # fmt: skip
    assert is_pipeline([dense, last])
    assert not is_pipeline([last, last])
    table = pipeline_table([dense, last])
    assert table.titles == (
        "step", "engine", "accuracy", "95 % interval", "drop", "agreement", "size", "smaller",
        "1 x 32", "faster",
    )  # fmt: skip
    assert table.lines[1] == (
        "quantize", "onnxruntime", "87.0 %", "80.0–90.0 %", "1.0", "100.0 %", "9.00 MB", "10.00 x",
        "2 ms", "8.25 x",
    )  # fmt: skip
    assert pipeline_sentence([dense, last]) == (
        "After quantize: 10.0 times smaller (90.0 to 9.00 MB), 8.25 times faster at 1 x 32, "
        "accuracy 87.0 % (−1.0 against the dense model)."
    )
    assert pipeline_sentence([dense]) == "No step is measured yet."
    assert "faster" not in pipeline_table([{**last, "timings": []}, dense]).titles


def test_pictures_of_weights_compare_with_the_step_before(
    plan: dict[str, Any], tmp_path: Path
) -> None:
    steps = [{"prune": {"sparsity": 0.5}}, {"prune": {"sparsity": 0.8}}]
    fields = {**plan, "steps": steps}
    run(parse_recipe({**fields, "measure": {"every_step": True}}), tmp_path / "steps")
    run(parse_recipe({**fields, "measure": {}}), tmp_path / "last")

    def zeros_before(name: str) -> list[float]:
        """Share of zeros before each row's step."""
        store = RunDirectory(tmp_path / name)
        weights = store.weights()
        before = [weights[weights[row["hash"]]["dense"]] for row in store.rows()]
        return [one["zeros"] / one["count"] for one in before]

    assert zeros_before("steps") == pytest.approx([0, 0, 0.5], abs=1e-3)
    assert zeros_before("last") == [0]


def test_rows_say_what_chance_level_is(plan: dict[str, Any]) -> None:
    quick = {**plan, "steps": [{"prune": {"sparsity": 0.5}}]}
    (row,) = run(parse_recipe({**quick, "measure": {"metric": "f1"}}))
    assert row["majority"] == 0.5
    assert row["chance"] == pytest.approx(2 / 3)  # f1 of always answering class 1
    (row,) = run(parse_recipe({**quick, "measure": {}}))
    assert row["chance"] == row["majority"] == 0.5
    assert "reference_n" not in row
    reference = {"source": "a table", "values": {0.5: 0.9}, "n": 500}
    (row,) = run(parse_recipe({**quick, "measure": {}, "reference": reference}))
    assert row["reference_n"] == 500


def test_a_row_below_chance_is_noted(plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcompress.sweep.trial.is_below_chance", lambda row: True)
    reference = {"source": "a table", "values": {0.5: 0.9}, "notes": {0.5: "hello"}}
    steps = [{"prune": {"sparsity": 0.5}}]
    (row,) = run(parse_recipe({**plan, "steps": steps, "measure": {}, "reference": reference}))
    assert row["note"] == "hello; below chance level: labels may be swapped"
