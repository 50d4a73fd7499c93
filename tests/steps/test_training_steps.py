"""The steps that train: zeros stay, what is asked is reached, options change the result."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hfcompress.errors import ConfigError, MissingExtraError, TargetError
from hfcompress.measure.size import calculate_sparsity
from hfcompress.steps.training import dropout, fast_attention, frozen_embeddings
from tests.tiny_models import tiny_bert

FAST = {"max_steps": 12, "batch_size": 8, "learning_rate": 5e-3}


def test_recovery_keeps_the_zeros(one: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    prune = {"prune": {"sparsity": 0.7, "scope": "global"}}
    pruned = one(prune)
    row = one(prune, {"recover": FAST}, output=tmp_path / "run", save_models=True)
    assert row["actual_sparsity"] == pruned["actual_sparsity"]
    assert row["weights_hash"] != pruned["weights_hash"]
    assert row["requested_sparsity"] == 0.7
    (folder,) = (tmp_path / "run" / "models").iterdir()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    names = [layer["name"] for layer in row["layers"]]
    assert calculate_sparsity(model, names).targets == row["actual_sparsity"]


@pytest.mark.parametrize(
    "change",
    [
        {"task_loss_weight": 0.5},
        {"dropout": None},
        {"dropout": 0.5},
        {"freeze_embeddings": False},
        {"distillation": {"temperature": 2.0}},
        {"distillation": {"hidden_weight": 1.0}},
        {"task_loss_weight": 0.0, "distillation": {}},
        {"task_loss_weight": 0.0, "distillation": {}, "augmentation": {"share": 0.5}},
        {"task_loss_weight": 0.0, "distillation": {}, "augmentation": {"share": 1.0}},
    ],
)
def test_every_option_of_recovery_changes_the_result(
    change: dict[str, Any], one: Callable[..., dict[str, Any]]
) -> None:
    prune = {"prune": {"sparsity": 0.5}}
    base = one(prune, {"recover": FAST})
    other = one(prune, {"recover": {**FAST, **change}})
    assert other["weights_hash"] != base["weights_hash"]
    assert other["actual_sparsity"] == base["actual_sparsity"]


def test_gradual_pruning_reaches_its_sparsity(one: Callable[..., dict[str, Any]]) -> None:
    row = one({"gradual": {**FAST, "pruning": {"sparsity": 0.8, "frequency": 2}}})
    assert abs(row["actual_sparsity"] - 0.8) < 2e-3
    assert row["requested_sparsity"] == 0.8
    assert row["steps"][0]["updates"] == 12
    other = one(
        {"gradual": {**FAST, "pruning": {"sparsity": 0.8, "frequency": 2, "schedule": "linear"}}}
    )
    assert other["weights_hash"] != row["weights_hash"]


def test_gradual_pruning_by_a_one_shot_method(one: Callable[..., dict[str, Any]]) -> None:
    pruning = {"method": "custom", "sparsity": 0.5, "frequency": 3}
    oneshot = {"method": "wanda", "sparsity": 0.1, "calibration_rows": 8}
    row = one({"gradual": {**FAST, "pruning": pruning, "oneshot": oneshot}})
    assert abs(row["actual_sparsity"] - 0.5) < 5e-3
    plain = one({"gradual": {**FAST, "pruning": {**pruning, "method": "magnitude"}}})
    assert row["weights_hash"] != plain["weights_hash"]


def test_lottery_ticket(one: Callable[..., dict[str, Any]]) -> None:
    step = {"sparsity": 0.75, "rounds": 2, "rewind_step": 3, "training": FAST}
    row = one({"lottery": step})
    assert abs(row["actual_sparsity"] - 0.75) < 1e-3
    assert row["steps"][0]["rounds"] == [0.0, 0.5, 0.75]
    assert one({"lottery": {**step, "rewind_step": 0}})["weights_hash"] != row["weights_hash"]


def test_progressive_pruning_stops_at_a_loss(one: Callable[..., dict[str, Any]]) -> None:
    train = {"finetune": {**FAST, "max_steps": 60, "learning_rate": 1e-2}}
    step = {
        "sparsity": 0.99, "initial_sparsity": 0.3, "rounds": 3, "spacing": "linear",
        "prune": {"sparsity": 0.1}, "recover": {**FAST, "max_steps": 1, "learning_rate": 1e-6},
        "held_out": 0.5,
    }  # fmt: skip
    free = one(train, {"progressive": step})
    assert abs(free["actual_sparsity"] - 0.99) < 2e-3
    held = one(train, {"progressive": {**step, "max_loss": 0.05}})
    rounds = held["steps"][1]["rounds"]
    assert not rounds[-1]["accepted"]
    assert held["actual_sparsity"] < 0.9


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        ({"recover": {"task_loss_weight": 0}}, ConfigError, "leaves no loss"),
        (
            {"recover": {"augmentation": {}, "distillation": {}}},
            ConfigError,
            "set task_loss_weight",
        ),
        ({"gradual": {"pruning": {"method": "custom", "sparsity": 0.5}}}, ConfigError, "oneshot"),
        ({"gradual": {}}, ConfigError, "needs the field 'pruning'"),
        (
            {"gradual": {"pruning": {"sparsity": 0.5, "targets": ["none"]}}},
            TargetError,
            "matches no module",
        ),
        ({"lottery": {"sparsity": 0.5, "targets": ["none"]}}, TargetError, "matches no module"),
    ],
)
def test_mistakes(
    step: dict[str, Any],
    error: type[Exception],
    message: str,
    one: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        one(step, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed(
    one: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hfcompress\[track\]'"):
        one({"finetune": {**FAST, "track": "trackio"}})


def test_training_leaves_the_model_as_it_was_set_up() -> None:
    model = tiny_bert()
    probabilities = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert max(probabilities) > 0
    with dropout(model, 0.0), frozen_embeddings(model, True), fast_attention(model):
        assert not any(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        assert len(frozen) == 3
        assert all("_embeddings.weight" in name for name in frozen)
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == probabilities
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"
