"""The quantize step: rows as if made by hand, folders that load, and where it may stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hfcompress
from hfcompress.errors import ConfigError
from hfcompress.inference import predict
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import prepare
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import run
from hfcompress.utils import Progress

pytestmark = pytest.mark.usefixtures("shared_exports")


@pytest.fixture
def plan(model_folder: Path, write_data: Callable[..., Path]) -> dict[str, Any]:
    return {
        "model": str(model_folder),
        "data": str(write_data(rows=60)),
        "steps": [{"prune": {"sparsity": 0.3}}, {"quantize": {"backend": "torch"}}],
        "save_models": True,
    }


def test_the_row_is_what_the_steps_give_by_hand(plan: dict[str, Any], tmp_path: Path) -> None:
    recipe = parse_recipe(plan)
    (row,) = run(recipe, tmp_path / "run").rows
    bench = prepare(recipe, Progress(), StepCache())
    dense = predict(bench.loaded.model, bench.eval, 32).argmax(1)
    hfcompress.prune(bench.loaded.model, hfcompress.PruningConfig(sparsity=0.3))
    made = quantize(bench.loaded.model, QuantizationConfig(backend="torch"))
    logits = made.predict(bench.eval, 32)
    assert row["bytes"] == made.bytes
    assert row["value"] == float(np.mean(logits.argmax(1) == bench.eval.labels))
    assert row["agreement"] == float(np.mean(logits.argmax(1) == dense))
    assert row["actual_sparsity"] == pytest.approx(0.3, abs=1e-3)
    assert row["steps"][1]["step"] == "quantize"
    assert row["steps"][1]["share_of_macs"] == made.coverage.share_of_macs
    saved = RunDirectory(tmp_path / "run").load_predictions(row["hash"])
    assert saved is not None
    assert np.array_equal(saved, logits)
    (folder,) = (tmp_path / "run" / "models").iterdir()
    found: Any = hfcompress.load(folder)("a good film")
    assert found["label"] in ("0", "1", "LABEL_0", "LABEL_1")
    assert "Measured" in (folder / "README.md").read_text()


def test_static_mode_reads_training_rows(plan: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    rows = []
    for seed in (0, 1):
        step = {"mode": "static", "calibration_rows": 8, "seed": seed}
        rows += run(
            parse_recipe({**plan, "steps": [{"quantize": step}]}), tmp_path / str(seed)
        ).rows
    assert rows[0]["weights_hash"] != rows[1]["weights_hash"]
    assert rows[0]["steps"][0]["mode"] == "static"


def test_a_missing_engine_fails_its_trial_alone(
    plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    grid = {"quantize.backend": ["torch", "torchao"]}
    result = run(parse_recipe({**plan, "grid": grid, "save_models": False}), tmp_path / "run")
    assert [row["settings"] for row in result.rows] == [{"quantize.backend": "torch"}]
    ((settings, reason),) = result.failures
    assert settings == {"quantize.backend": "torchao"}
    assert "pip install 'hfcompress[torchao]'" in reason


def test_quantize_must_be_last(plan: dict[str, Any]) -> None:
    steps = [{"quantize": {}}, {"prune": {"sparsity": 0.5}}]
    with pytest.raises(ConfigError, match=r"steps\[0\].quantize leaves no torch model for the"):
        parse_recipe({**plan, "steps": steps})


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_quantization_aware_training_goes_before_it(plan: dict[str, Any], tmp_path: Path) -> None:
    aware = {"quantization": {"backend": "torch"}, "max_steps": 4, "learning_rate": 1e-3}
    steps = [*plan["steps"][:1], {"qat": aware}, *plan["steps"][1:]]
    recipe = parse_recipe({**plan, "steps": steps})
    (row,) = run(recipe, tmp_path / "aware").rows
    (plain,) = run(parse_recipe(plan), tmp_path / "plain").rows
    assert [step["step"] for step in row["steps"]] == ["prune", "qat", "quantize"]
    assert row["steps"][1]["updates"] == 4
    assert row["steps"][1]["aware_modules"] > 5
    assert row["weights_hash"] != plain["weights_hash"]
    assert row["actual_sparsity"] == pytest.approx(plain["actual_sparsity"], abs=0.01)
    bench = prepare(recipe, Progress(), StepCache())
    dense = predict(bench.loaded.model, bench.eval, 32).argmax(1)
    saved = RunDirectory(tmp_path / "aware").load_predictions(row["hash"])
    assert saved is not None
    assert row["agreement"] == float(np.mean(saved.argmax(1) == dense))


def test_without_pruning_the_original_is_the_teacher(plan: dict[str, Any], tmp_path: Path) -> None:
    aware = {"quantization": {"backend": "torch"}, "max_steps": 2}
    steps = [{"qat": aware}, {"quantize": {"backend": "torch"}}]
    recipe = parse_recipe({**plan, "steps": steps, "save_models": False})
    (row,) = run(recipe, tmp_path / "run").rows
    bench = prepare(recipe, Progress(), StepCache())
    dense = predict(bench.loaded.model, bench.eval, 32)
    saved = RunDirectory(tmp_path / "run").load_predictions(row["hash"])
    assert saved is not None
    assert row["agreement"] == float(np.mean(saved.argmax(1) == dense.argmax(1)))
    assert 0 < np.abs(saved - dense).max() < 0.3


def test_mixed_precision_reads_training_rows_and_says_what_it_kept(
    plan: dict[str, Any], tmp_path: Path
) -> None:
    step = {"backend": "torch", "mixed": {"max_kl": 1e-12}, "calibration_rows": 8}
    progress = Notes()
    recipe = parse_recipe({**plan, "steps": [{"quantize": step}], "save_models": False})
    (row,) = run(recipe, tmp_path / "run", progress).rows
    mixed = row["steps"][0]["mixed"]
    assert len(mixed["kept"]) > 1
    assert mixed["kept_bytes"] == sum(module["bytes"] for module in mixed["kept"])
    assert mixed["measured"]["kl"] < mixed["uniform"]["kl"]
    assert any("mixed precision keeps" in note for note in progress.notes)
    assert any(note.startswith("integers now: ") for note in progress.notes)
    left = row["steps"][0]["left_alone"]
    assert left["kept in fp32 by mixed precision"] == len(mixed["kept"])


def test_a_step_that_quantizes_nothing(plan: dict[str, Any]) -> None:
    steps = [{"qat": {"quantization": {"backend": "onnxruntime", "mode": "none"}}}]
    with pytest.raises(ConfigError, match="mode: none quantizes nothing; choose another mode"):
        parse_recipe({**plan, "steps": steps})
