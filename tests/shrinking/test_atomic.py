"""A shrink that raises leaves the model bit for bit as it was, wherever it raises."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

from hfcompress.calibration.batches import Calibration
from hfcompress.errors import CalibrationError, ConfigError, HfcompressError
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.shrink import shrink
from hfcompress.shrinking.snapshot import Snapshot, restored_on_error
from tests.tiny_images import convnet, convnet_batches
from tests.tiny_models import shrinkable_batches, shrinkable_model

SHRINKING = "hfcompress.shrinking"
SUBLAYER_STEPS = {
    "surgery": (f"{SHRINKING}.sublayers.repair.keep_units", 3),
    "refit": (f"{SHRINKING}.sublayers.repair.write_matrix", 2),
    "importance": (f"{SHRINKING}.sublayers.selection.importance", 1),
    "measuring": (f"{SHRINKING}.sublayers.errors.write_matrix", 4),
    "forward pass": (f"{SHRINKING}.sublayers.activations.first_tensor", 12),
    "record": ("hfcompress.checkpoint.save.record_shapes", 1),
    "report": (f"{SHRINKING}.shrink.ShrinkReport", 1),
}
CHANNEL_STEPS = {
    "surgery": (f"{SHRINKING}.channels.surgery.keep_along", 5),
    "sizes": (f"{SHRINKING}.channels.surgery.resized", 2),
    "measuring": (f"{SHRINKING}.channels.errors.write_matrix", 4),
    "refit": (f"{SHRINKING}.channels.repair.write_matrix", 2),
    "record": ("hfcompress.checkpoint.save.record_shapes", 1),
    "report": (f"{SHRINKING}.shrink.ShrinkReport", 1),
}


def convnextv2() -> Any:
    torch.manual_seed(0)
    config = ConvNextV2Config(image_size=32, num_stages=2, hidden_sizes=[16, 32], depths=[1, 2])
    config.num_labels = 3
    return ConvNextV2ForImageClassification(config)


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "bert": (lambda: shrinkable_model("bert"), lambda: shrinkable_batches("bert")),
    "convnextv2": (convnextv2, lambda: convnet_batches("convnextv2")),
    "resnet": (lambda: convnet("resnet"), lambda: convnet_batches("resnet")),
}
CASES = [
    *(("bert", step) for step in SUBLAYER_STEPS),
    *(("resnet", step) for step in CHANNEL_STEPS),
    *(("convnextv2", step) for step in CHANNEL_STEPS if step != "report"),  # record_shapes refuses
]


class Injected(Exception):
    """Raised by a step that is made to fail."""


def state(model: nn.Module) -> list[object]:
    """All that must not change; tensors are compared by bytes, objects by identity."""

    def raw(tensor: Tensor) -> bytes:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    tensors = [*model.named_parameters(), *model.named_buffers()]
    modules = list(model.named_modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for _, m in modules]
    config = getattr(model, "config", None)
    return [
        [(name, id(tensor), tensor.shape, raw(tensor)) for name, tensor in tensors],
        [(name, tensor.requires_grad, tensor.grad) for name, tensor in tensors],
        [(name, id(module), module.training, module.extra_repr()) for name, module in modules],
        [(name, sorted(vars(module))) for name, module in modules],
        hooks,
        None if config is None else (id(config), copy.deepcopy(config.to_dict())),
    ]


def fail_at(monkeypatch: pytest.MonkeyPatch, path: str, call: int) -> list[int]:
    """Make a function raise at its n-th call; the returned list has one item per call."""
    module, _, name = path.rpartition(".")
    calls: list[int] = []
    original = getattr(__import__(module, fromlist=[name]), name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == call:
            raise Injected(path)
        return original(*args, **kwargs)

    monkeypatch.setattr(path, failing)
    return calls


@pytest.mark.parametrize(("name", "step"), CASES)
def test_a_failing_step_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch, name: str, step: str
) -> None:
    build, batches = MODELS[name]
    model = build().train()
    before = state(model)
    path, call = (SUBLAYER_STEPS if name == "bert" else CHANNEL_STEPS)[step]
    calls = fail_at(monkeypatch, path, call)
    config = ShrinkConfig(macs=0.5, table_rows=8)
    with pytest.raises((Injected, HfcompressError)):
        shrink(model, config, Calibration(batches()))
    assert len(calls) >= call
    assert state(model) == before


@pytest.mark.parametrize("name", MODELS)
def test_a_recover_callback_that_raises_leaves_the_model_as_it_was(name: str) -> None:
    build, batches = MODELS[name]
    model = build()
    model.train()
    next(model.modules()).eval()  # a mode of its own
    before = state(model)

    def recover(network: Any) -> None:
        network.train()
        (batch, *_) = batches()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        network(**batch).loss.backward()
        optimizer.step()
        network.config.num_labels_seen = 3
        network.register_forward_hook(lambda *_: None)
        network.extra = nn.Linear(2, 2)
        next(network.parameters()).requires_grad_(False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shrink(
            model,
            ShrinkConfig(macs=0.5, rounds=2, score="magnitude"),
            Calibration(batches()),
            recover=recover,
        )
    assert state(model) == before


@pytest.mark.parametrize("name", MODELS)
def test_a_budget_that_the_second_round_cannot_reach_leaves_the_model_as_it_was(name: str) -> None:
    build, batches = MODELS[name]
    model = build()
    before = state(model)
    config = ShrinkConfig(
        macs=0.06, rounds=4, score="magnitude", min_heads=1, min_neurons=8, min_channels=4
    )
    rounds: list[int] = []
    with pytest.raises(ConfigError, match="is below what"):
        shrink(model, config, Calibration(batches()), recover=lambda _: rounds.append(1))
    assert rounds, "refused before the first cut"
    assert state(model) == before


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("repair", ["mean", "ridge"])
def test_rows_that_become_nan_after_the_cut_leave_the_model_as_it_was(
    name: str, repair: Any
) -> None:
    build, batches = MODELS[name]
    model = build()
    before = state(model)

    def spoil(network: Any) -> None:
        with torch.no_grad():
            next(network.parameters()).fill_(float("nan"))

    with pytest.raises(CalibrationError, match="NaN"):
        shrink(
            model,
            ShrinkConfig(macs=0.5, rounds=2, score="magnitude", repair=repair),
            Calibration(batches()),
            recover=spoil,
        )
    assert state(model) == before


def test_dropped_layers_return_when_the_budget_is_refused() -> None:
    model = shrinkable_model("bert")
    before = state(model)
    with pytest.raises(ConfigError, match="is below what"):
        shrink(
            model,
            ShrinkConfig(layers=2, macs=0.0001, min_heads=1),
            Calibration(shrinkable_batches("bert")),
        )
    assert state(model) == before


def test_gradients_are_restored() -> None:
    model = shrinkable_model("bert")
    model(**shrinkable_batches("bert")[0]).loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def zero() -> None:
        with restored_on_error(model):
            model.zero_grad(set_to_none=False)
            raise Injected

    with pytest.raises(Injected):
        zero()
    after = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_dense_copy_shares_the_tensors_of_the_snapshot() -> None:
    model = shrinkable_model("bert")
    snapshot = Snapshot(model)
    dense, again = snapshot.copy_of(model), snapshot.copy_of(model)
    pairs = zip(model.parameters(), dense.parameters(), again.parameters(), strict=True)
    for own, first, second in pairs:
        assert first is second is not own
        assert torch.equal(own, first)
