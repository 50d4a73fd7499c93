"""Mixed precision: what is made sensitive on purpose stays in fp32, and the loss holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hfcompress.errors import CalibrationError, ConfigError
from hfcompress.quantization.config import MixedPrecisionConfig, QuantizationConfig
from hfcompress.quantization.mixed_precision import loss_of
from hfcompress.quantization.quantize import quantize
from tests.tiny_models import text_batches, text_model

# Rounding inputs of this size loses answers, but not all of them: that would be refused.
LARGE = 300.0
SENSITIVE = "bert.encoder.layer.0.output.dense"
pytestmark = pytest.mark.usefixtures("shared_exports")


def lopsided() -> Any:
    """One product reads one input that is hundreds of times the others, and does not use it: its
    activations in 8 bits say nothing of the others."""
    model = text_model()
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.bias[0] = LARGE
        layer.output.dense.weight[:, 0] = 0.0
    return model


def kl(model: Any, logits: Any) -> float:
    dense = [model(**{k: v for k, v in b.items() if k != "labels"}).logits for b in text_batches()]
    p, q = torch.cat(dense).detach().double().softmax(-1), torch.from_numpy(logits).double()
    return float((p * (p.log() - q.log_softmax(-1))).sum(-1).mean())


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_the_sensitive_layer_stays_and_the_loss_holds(backend: Any) -> None:
    pytest.importorskip(backend)
    model = lopsided()
    config = QuantizationConfig(backend=backend)
    plain = quantize(model, config, text_batches())
    limit = 0.004
    found = quantize(
        model, config.replace(mixed=MixedPrecisionConfig(max_kl=limit)), text_batches()
    )
    assert found.mixed is not None
    assert found.mixed.names[0] == SENSITIVE
    assert found.mixed.modules[0].kl > 5 * max(row.kl for row in found.mixed.modules[1:])
    rows = {row.name: row for row in found.coverage.modules}
    assert not rows[SENSITIVE].quantized
    assert rows[SENSITIVE].why == "kept in fp32 by mixed precision"
    assert sum(row.quantized for row in rows.values()) >= 5
    logits = np.concatenate([found.logits(batch) for batch in text_batches()])
    worse = np.concatenate([plain.logits(batch) for batch in text_batches()])
    assert kl(model, logits) == pytest.approx(found.mixed.measured.kl, rel=1e-6)
    assert kl(model, logits) <= limit
    assert backend == "openvino" or kl(model, worse) > limit  # NNCF smooths that input away
    assert found.to_dict()["mixed"]["kept"][0]["name"] == SENSITIVE
    assert found.mixed.bytes >= 3 * 32 * 64
    assert found.to_dict()["mixed"]["holds"]


def test_torch_foretells_what_onnxruntime_loses() -> None:
    pytest.importorskip("onnxruntime")
    mixed = MixedPrecisionConfig(max_kl=1e-3)
    found = quantize(lopsided(), QuantizationConfig(mixed=mixed), text_batches()).mixed
    assert found is not None
    assert found.measured.kl == pytest.approx(found.predicted.kl, rel=0.1, abs=1e-5)
    assert found.uniform.kl > 1e-3 >= found.measured.kl


def test_a_loss_that_holds_keeps_nothing_and_a_stricter_one_keeps_more() -> None:
    pytest.importorskip("onnxruntime")
    loose, strict, classes = (
        quantize(
            lopsided(), QuantizationConfig(mixed=MixedPrecisionConfig(**limits)), text_batches()
        )
        for limits in ({"max_kl": 5.0}, {"max_kl": 1e-5}, {"max_changed": 0.0})
    )
    assert loose.mixed is not None
    assert strict.mixed is not None
    assert classes.mixed is not None
    assert (loose.mixed.kept, loose.mixed.bytes) == (0, 0)
    assert strict.mixed.kept > 1
    assert strict.bytes > loose.bytes
    assert classes.mixed.measured.changed == 0
    assert strict.mixed.holds
    assert not strict.notes


def test_an_exclusion_stays_an_exclusion() -> None:
    mixed = MixedPrecisionConfig(max_kl=5.0)
    config = QuantizationConfig(backend="torch", exclude=("classifier",), mixed=mixed)
    found = quantize(lopsided(), config, text_batches())
    rows = {row.name: row for row in found.coverage.modules}
    assert rows["classifier"].why == "excluded by the config"
    assert found.mixed is not None
    assert "classifier" not in [row.name for row in found.mixed.modules]


def test_the_loss_of_logits_by_hand() -> None:
    dense = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))
    ours = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], np.float32))
    loss = loss_of(ours, dense)
    assert loss.kl == pytest.approx((0.9 * np.log(0.9 / 0.25) + 0.1 * np.log(0.1 / 0.75)) / 2)
    assert loss.changed == 0.5
    assert loss_of(dense, dense).kl == 0


def test_a_loss_that_cannot_hold_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and tables aside, an engine may differ more than is allowed with all in fp32."""
    config = QuantizationConfig(backend="torch", mixed=MixedPrecisionConfig(max_kl=1e-30))
    found = quantize(text_model(), config, text_batches())
    assert found.mixed is not None
    assert found.mixed.kept == len(found.mixed.modules)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixed": {}}, "give max_kl or max_changed, or both"),
        ({"mixed": {"max_kl": 0}}, "mixed.max_kl should be greater than 0"),
        ({"mixed": {"max_kl": 0.1}, "mode": "none"}, "quantizes nothing; leave mixed out"),
    ],
)
def test_a_config_that_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantizationConfig.from_dict(options)


def test_mixed_precision_without_calibration_data_or_classes() -> None:
    config = QuantizationConfig(backend="torch", mixed=MixedPrecisionConfig(max_kl=0.1))
    with pytest.raises(CalibrationError, match="mixed needs calibration data"):
        quantize(text_model(), config)
    with pytest.raises(ConfigError, match="this model has one output"):
        quantize(text_model(labels=1), config, text_batches())
