"""``SparseLinear`` is a Linear everywhere; `sparsify` takes it where it measured faster."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification as AutoModelForText

import hfcompress
from hfcompress import PruningConfig, prune
from hfcompress.errors import ConfigError, TargetError
from hfcompress.layers import sparse_linear as choose
from hfcompress.layers.sparse_kernel import shape_for_host
from hfcompress.layers.sparse_linear import SparseLinear, densify, sparsify
from hfcompress.measure.latency import Latency, LatencyReport
from tests.layers.test_sparse_products import sparse
from tests.tiny_models import logits, shrinkable_batches, shrinkable_model

pytest.importorskip("llvmlite", reason="the extra sparse")


def layer(inputs: int = 32, outputs: int = 48) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.copy_(sparse(outputs, inputs, 0.1))
    return linear


class Counting:
    """Stands in for a product and counts its calls."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        self.calls += 1
        found: Tensor = self.inner(x, bias)
        return found


def counted(linear: SparseLinear) -> Counting:
    counter = Counting(linear._product)
    linear._product = counter
    return counter


@pytest.mark.parametrize("method", ["kernel", "csr"])
@pytest.mark.parametrize("shape", [(5, 32), (2, 7, 32), (32,), (2, 3, 4, 32)])
def test_it_answers_as_the_dense_layer(method: Any, shape: tuple[int, ...]) -> None:
    linear, x = layer(), torch.randn(shape)
    fast = SparseLinear(linear, method)
    counter = counted(fast)
    with torch.no_grad():
        assert torch.allclose(fast(x), linear(x), atol=1e-5)
        assert fast(x).shape == linear(x).shape
        turned = x.transpose(0, -1).contiguous().transpose(0, -1)
        assert torch.allclose(fast(turned), linear(x), atol=1e-5)
    assert counter.calls == 3


def test_where_zeros_cannot_be_skipped_it_is_dense() -> None:
    linear = layer()
    fast = SparseLinear(linear)
    counter = counted(fast)
    x = torch.randn(4, 32, requires_grad=True)
    fast(x).sum().backward()
    assert x.grad is not None
    assert linear.weight.grad is not None
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fast(x).dtype == torch.bfloat16
        assert fast(x[:0]).shape == (0, 48)
        half = copy.deepcopy(fast).bfloat16()
        assert half(x.bfloat16()).dtype == torch.bfloat16
        assert fast.to("meta")(x.to("meta")).device.type == "meta"
    assert counter.calls == 0


def test_it_exports_as_a_dense_layer() -> None:
    fast = SparseLinear(layer())
    counter = counted(fast)
    x = torch.randn(4, 32)
    with torch.no_grad():
        exported = torch.export.export(nn.Sequential(fast), (x,)).module()
        assert torch.allclose(exported(x), layer()(x), atol=1e-6)
    assert counter.calls == 0


@pytest.mark.parametrize("how", ["in place", "replaced", "loaded"])
def test_a_changed_weight_is_noticed(how: str) -> None:
    linear, x = layer(), torch.randn(4, 32)
    fast = SparseLinear(linear)
    with torch.no_grad():
        fast(x)
        if how == "in place":
            linear.weight.mul_(2)
        elif how == "replaced":
            fast.weight = nn.Parameter(sparse(48, 32, 0.5, seed=9))
        else:
            fast.load_state_dict({"weight": torch.eye(48, 32), "bias": torch.zeros(48)})
        expected = nn.functional.linear(x, fast.weight, fast.bias)
        assert torch.allclose(fast(x), expected, atol=1e-5)


def test_a_copy_is_its_own() -> None:
    fast = SparseLinear(layer())
    other = copy.deepcopy(fast)
    with torch.no_grad():
        other.weight.zero_()
        x = torch.randn(2, 32)
        assert torch.allclose(fast(x), layer()(x), atol=1e-5)
        assert torch.allclose(other(x), other.bias.expand(2, -1))
    assert "method=kernel" in repr(other)


def test_without_a_bias() -> None:
    linear = nn.Linear(32, 32, bias=False)
    x = torch.randn(3, 32)
    with torch.no_grad():
        assert torch.allclose(SparseLinear(linear)(x), linear(x), atol=1e-5)


def test_a_model_is_saved_and_trained_as_before(tmp_path: Path) -> None:
    model = shrinkable_model("bert")
    prune(model, PruningConfig(sparsity=0.9))
    batch = shrinkable_batches("bert")[0]
    before, names = logits(model, batch), list(model.state_dict())
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "encoder" in name:
            model.set_submodule(name, SparseLinear(module))
    assert torch.allclose(logits(model, batch), before, atol=1e-5)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    again = AutoModelForText.from_pretrained(tmp_path)
    assert torch.equal(logits(again, batch), before)
    assert not hfcompress.record_shapes(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    after = logits(model, batch)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.allclose(logits(densify(model), batch), after, atol=1e-5)
    assert not any(isinstance(module, SparseLinear) for module in model.modules())


def timed(monkeypatch: pytest.MonkeyPatch, times: Mapping[str, float]) -> list[set[str]]:
    """Give every layer the same times; returns what each measurement compared."""
    seen: list[set[str]] = []

    def measure(calls: Mapping[str, Any], *_: Any, seconds: float) -> LatencyReport:
        assert (seconds >= 0.05) == (len(calls) > 1), "one interruption must not decide"
        seen.append(set(calls))
        for call in calls.values():
            call()
        return LatencyReport({name: Latency((times[name],) * 3) for name in calls})

    monkeypatch.setattr(choose, "measure_latency", measure)
    return seen


@pytest.mark.parametrize(
    ("kernel", "csr", "method"), [(0.5, 0.7, "kernel"), (0.7, 0.5, "csr"), (0.98, 1.2, None)]
)
def test_the_fastest_is_taken(
    kernel: float, csr: float, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shrinkable_model("bert")
    prune(model, PruningConfig(sparsity=0.9))
    seen = timed(monkeypatch, {"dense": 1.0, "kernel": kernel, "csr": csr})
    report = sparsify(model, batch_size=2, length=9)
    assert seen == [{"dense", "kernel", "csr"}] * 18
    assert report.tokens == 18
    assert {choice.method for choice in report.layers} == {method}
    chosen = [m.method for m in model.modules() if isinstance(m, SparseLinear)]
    assert chosen == ([method] * 18 if method else [])
    assert "int8 in ONNX Runtime or OpenVINO is faster still" in report.note
    if method is None:
        assert "nothing gains for 18 tokens: at most 90%" in report.note
    else:
        assert "18 of 18 layers" in report.note
        assert "2.0 times faster" in report.note
    assert report.to_dict()["layers"][0]["sparse_ms"] == min(kernel, csr)


def test_a_dense_model_is_not_even_timed_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = timed(monkeypatch, {"dense": 1.0})
    report = sparsify(shrinkable_model("bert"))
    assert set(map(frozenset, seen)) == {frozenset({"dense"})}
    assert "at most 0%" in report.note


def test_measuring_again_starts_from_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shrinkable_model("bert")
    prune(model, PruningConfig(sparsity=0.9))
    timed(monkeypatch, {"dense": 1.0, "kernel": 0.1, "csr": 0.2})
    sparsify(model)
    timed(monkeypatch, {"dense": 1.0, "kernel": 2.0, "csr": 2.0})
    sparsify(model)
    assert not any(isinstance(module, SparseLinear) for module in model.modules())


def test_without_llvmlite_torch_csr_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llvmlite", "llvmlite.ir", "llvmlite.binding"):
        monkeypatch.setitem(sys.modules, name, None)
    shape_for_host.cache_clear()
    model = shrinkable_model("bert")
    prune(model, PruningConfig(sparsity=0.9))
    seen = timed(monkeypatch, {"dense": 1.0, "csr": 0.5})
    sparsify(model)
    assert seen == [{"dense", "csr"}] * 18


def test_measured_for_real_it_stays_right() -> None:
    model = shrinkable_model("bert")
    prune(model, PruningConfig(sparsity=0.9))
    batch = shrinkable_batches("bert")[0]
    before = logits(model, batch)
    report = sparsify(model, batch_size=4, length=9)
    assert len(report.layers) == 18
    assert all(choice.dense_ms > 0 for choice in report.layers)
    assert torch.allclose(logits(model, batch), before, atol=1e-5)


def test_bad_requests() -> None:
    with pytest.raises(ConfigError, match="must be 1 or more: 0, 32"):
        sparsify(shrinkable_model("bert"), batch_size=0)
    with pytest.raises(ConfigError, match=r"torch\.bfloat16 on cpu; sparse products"):
        sparsify(shrinkable_model("bert").bfloat16())
    with pytest.raises(TargetError):
        sparsify(nn.Sequential(nn.ReLU()))


def test_it_is_public() -> None:
    assert hfcompress.sparsify is sparsify
    assert hfcompress.SparseLinear is SparseLinear
