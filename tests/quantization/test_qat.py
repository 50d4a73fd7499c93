"""Fake quantization against the engines, its gradients, and what training with it leaves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hfcompress import PruningCallback, PruningConfig, PruningTrainingConfig, prune
from hfcompress.errors import ConfigError, TargetError
from hfcompress.layers.affine import dequantize_layer_weights, quantize_layer_weights
from hfcompress.models.sublayers import sublayers
from hfcompress.models.surgery import keep_units
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.qat import (
    Arithmetic,
    FakeQuantization,
    QuantizationAwareCallback,
    arithmetic_of,
    fake_activations,
    fake_weight,
    quantization_aware,
)
from hfcompress.quantization.quantize import quantize
from tests.tiny_models import logits, shrinkable_model, text_batches, text_model


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.rows = [
            {key: value[row] for key, value in batch.items()}
            for batch in text_batches(count=1)
            for row in range(6)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def train(model: Any, folder: Path, *callbacks: Any, steps: int = 3) -> None:
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=3, learning_rate=3e-3,
        use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=Rows(), callbacks=list(callbacks)).train()
    model.train(False)


def test_weights_and_activations_lie_where_affine_puts_them() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(6, 32), torch.randn(4, 5, 32) + 0.3
    for per_channel in (True, False):
        kept = quantize_layer_weights(weight, 8, per_channel=per_channel)
        found = fake_weight(weight, Arithmetic("none", per_channel=per_channel))
        torch.testing.assert_close(found, dequantize_layer_weights(kept), rtol=1e-6, atol=1e-7)
    whole = quantize_layer_weights(inputs, 8, per_channel=False, symmetric=False)
    torch.testing.assert_close(
        fake_activations(inputs, "tensor"), dequantize_layer_weights(whole), rtol=1e-5, atol=1e-5
    )
    tokens = quantize_layer_weights(inputs.flatten(0, 1), 8)
    torch.testing.assert_close(
        fake_activations(inputs, "token").flatten(0, 1),
        dequantize_layer_weights(tokens), rtol=1e-5, atol=1e-6,
    )  # fmt: skip
    assert torch.equal(fake_activations(inputs, "none"), inputs)
    cut = fake_activations(inputs, "static", torch.tensor([-0.5, 1.0]))
    assert cut.min().item() == pytest.approx(-0.5, abs=0.01)
    assert cut.max().item() == pytest.approx(1, abs=0.01)


def test_the_gradient_passes_rounding_and_stops_where_numbers_are_cut_off() -> None:
    weight = torch.randn(3, 8, requires_grad=True)
    factors = torch.randn(3, 8)
    (fake_weight(weight, Arithmetic("none")) * factors).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(weight.grad, factors)  # type: ignore[arg-type]
    inputs = torch.tensor([-2.0, 0.3, 5.0], requires_grad=True)
    fake_activations(inputs, "static", torch.tensor([-1.0, 1.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert inputs.grad is not None
    assert inputs.grad.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Arithmetic("tensor", table_bits=8)),
        ({"embedding_bits": 4}, Arithmetic("tensor", table_bits=4)),
        ({"embeddings": False, "reduce_range": True}, Arithmetic("tensor", bits=7)),
        ({"per_channel": False}, Arithmetic("tensor", per_channel=False, table_bits=8)),
        ({"mode": "static"}, Arithmetic("static", table_bits=8, convolutions=True)),
        ({"backend": "torch"}, Arithmetic("tensor")),
        ({"backend": "torchao"}, Arithmetic("token")),
        ({"per_token": True}, Arithmetic("token", table_bits=8)),
        ({"backend": "torchao", "mode": "weight-only", "bits": 4},
         Arithmetic("none", bits=4, group=32)),
        ({"backend": "openvino"}, Arithmetic("static", table_bits=8, convolutions=True)),
    ],
)  # fmt: skip
def test_each_backend_has_its_arithmetic(options: dict[str, Any], expected: Arithmetic) -> None:
    assert arithmetic_of(QuantizationConfig.from_dict(options)) == expected


@pytest.mark.usefixtures("shared_exports")
@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_the_simulation_computes_what_the_engine_computes(backend: Any) -> None:
    """To rounding, of one model at least: a sum that ends a bit elsewhere, by processor and number
    of threads, can round an input the other way, and with it the range of the next layer."""
    pytest.importorskip(backend)
    config, batch = QuantizationConfig(backend=backend), text_batches()[0]
    shares = []
    for seed in range(4):
        model = text_model(seed=seed)
        real, fake = quantize(model, config), FakeQuantization(model, config)
        before = logits(model, batch)
        fake.start()
        simulated = logits(model, batch)
        fake.stop()
        assert torch.equal(logits(model, batch), before)
        error = (simulated - torch.from_numpy(real.logits(batch))).abs().max()
        shares.append(float(error / (before - simulated).abs().max()))
    assert min(shares) < 1e-4
    assert max(shares) < 1


@pytest.mark.usefixtures("shared_exports")
@pytest.mark.parametrize("callback", [True, False])
def test_training_leaves_plain_weights_on_the_grid(callback: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, config, batch = text_model(), QuantizationConfig(), text_batches()[0]
    before = copy.deepcopy(model)
    names = list(model.state_dict())
    if callback:
        train(model, tmp_path, QuantizationAwareCallback(config))
    else:
        with quantization_aware(model, config):
            train(model, tmp_path)
    assert list(model.state_dict()) == names
    assert not any("forward" in vars(module) for module in model.modules() if module is not model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            kept = quantize_layer_weights(module.weight)
            torch.testing.assert_close(
                dequantize_layer_weights(kept), module.weight.detach(), rtol=1e-6, atol=1e-8
            )
            assert not torch.equal(module.weight, before.get_submodule(name).weight)
    fake = FakeQuantization(model, config)
    fake.start()
    simulated = logits(model, batch)
    fake.stop()
    real = quantize(model, config).logits(batch)
    np.testing.assert_allclose(real, simulated.numpy(), atol=0.02)
    assert np.abs(real - logits(before, batch).numpy()).max() > 0.1


def test_training_sees_the_rounding(tmp_path: Path) -> None:
    """With 4 bits the loss of the rounded model falls further than by training in fp32."""
    config = QuantizationConfig(backend="torchao", mode="weight-only", bits=4)
    start = text_model()

    def rounded_loss(model: Any) -> float:
        fake = FakeQuantization(model, config)
        fake.start()
        with torch.no_grad():
            found = float(model(**text_batches(count=1)[0]).loss)
        fake.stop()
        return found

    aware, plain = copy.deepcopy(start), copy.deepcopy(start)
    train(aware, tmp_path, QuantizationAwareCallback(config), steps=12)
    train(plain, tmp_path, steps=12)
    assert rounded_loss(aware) < rounded_loss(plain) < rounded_loss(start)


def test_zeros_of_a_pruned_model_stay(tmp_path: Path) -> None:
    model = text_model()
    prune(model, PruningConfig(sparsity=0.5))
    weight: Any = model.bert.encoder.layer[0].output.dense.weight
    zeros = weight == 0
    masks = PruningCallback(PruningTrainingConfig(method="keep_zeros"))
    train(model, tmp_path, masks, QuantizationAwareCallback(QuantizationConfig(backend="torch")))
    assert zeros.float().mean() == pytest.approx(0.5, abs=0.01)
    assert not weight[zeros].any()
    assert weight[~zeros].any()


def test_static_ranges_are_those_that_were_observed() -> None:
    model, config = text_model(), QuantizationConfig(mode="static")
    batch = text_batches()[0]
    expected = logits(model, batch)
    fake = FakeQuantization(model, config)
    fake.start()
    fake.observe(lambda: logits(model, batch))
    wide = logits(model, batch)
    fake.active = {"classifier"}
    alone = logits(model, batch)
    fake.active = set()
    assert torch.equal(logits(model, batch), expected)
    fake.stop()
    assert 0 < (alone - expected).abs().max() < (wide - expected).abs().max() < 0.3


@pytest.mark.parametrize(("kind", "sides"), [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
def test_convolutions_of_all_dimensions_round_as_the_engine_does(kind: Any, sides: int) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = nn.Sequential(
        kind(2, 6, 3), nn.ReLU(), kind(6, 4, 2), nn.Flatten(), nn.Linear(4 * 3**sides, 3)
    ).eval()
    batch, config = torch.randn(32, 2, *[6] * sides), QuantizationConfig(mode="static")
    expected = model(batch)
    with quantization_aware(model, config) as fake:
        assert [*fake.modules] == ["0", "2", "4"]
        fake.observe(lambda: model(batch))
        rounded = model(batch)
    rows = model[0].weight.detach().flatten(1)
    integers = rows / rows.abs().amax(1, keepdim=True) * 127
    torch.testing.assert_close(integers, integers.round(), atol=1e-3, rtol=0)
    small = quantize(model, config, [batch])
    engine = torch.from_numpy(small.logits({small.engine.inputs[0]: batch}))
    lost, simulated = (float((y - expected).detach().std()) for y in (engine, rounded))
    assert 0.5 < simulated / lost < 2


def test_a_training_that_fails_leaves_the_weights_alone() -> None:
    model = text_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with (
        pytest.raises(RuntimeError, match="no more"),
        quantization_aware(model, QuantizationConfig(backend="torch")),
    ):
        raise RuntimeError("no more")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert "forward" not in vars(model.classifier)


def test_a_layer_that_shrinking_left_empty_stays_as_it_is() -> None:
    model = shrinkable_model("bert")
    keep_units(model, next(part for part in sublayers(model) if part.kind == "neurons"), [])
    inputs, config = text_batches()[0], QuantizationConfig(backend="torch")
    expected = logits(model, inputs)
    with quantization_aware(model, config) as fake:
        assert "bert.encoder.layer.0.intermediate.dense" not in fake.modules
        assert "bert.encoder.layer.1.intermediate.dense" in fake.modules
        rounded = logits(model, inputs)
    assert 0 < (rounded - expected).abs().max() < 0.5 * (expected.max() - expected.min())


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="mode: none quantizes nothing"):
        FakeQuantization(text_model(), QuantizationConfig(mode="none"))
    with pytest.raises(TargetError, match="'nothing' matches no module"):
        FakeQuantization(text_model(), QuantizationConfig(exclude=("nothing",)))
    with pytest.raises(TargetError, match="Sequential has no Linear to quantize"):
        FakeQuantization(nn.Sequential(nn.ReLU()), QuantizationConfig())
