"""Any module that takes ``pixel_values`` or a plain tensor: pruned, calibrated, measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration
from hfcompress.data.encode import Encoded
from hfcompress.data.image_batches import array_dataset, image_rows
from hfcompress.errors import ModelError
from hfcompress.inference import logits_in, predict
from hfcompress.measure.evaluation import compare
from hfcompress.measure.size import calculate_sparsity
from hfcompress.models.image_models import plain_processor
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import prune


class Named(nn.Module):
    """Takes ``pixel_values``, gives a mapping; a grouped and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.out = nn.Linear(8, 3)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        found = self.first(pixel_values).relu()
        found = self.depthwise(self.grouped(found).relu()).relu()
        return {"logits": self.out(found.mean((2, 3)))}


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


MODELS = {"plain tensor": plain, "pixel_values": Named}


@pytest.fixture
def data() -> Encoded:
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 9), np.uint8)
    rows = array_dataset(images, [i % 3 for i in range(40)], None)
    encoded, collate = image_rows(rows, "image", plain_processor(9, 1))
    return Encoded(encoded, None, collate)


@pytest.mark.parametrize("kind", MODELS)
def test_predictions_are_the_modules_own(kind: str, data: Encoded) -> None:
    model = MODELS[kind]().eval()
    ((_, batch),) = data.batches(40)
    with torch.no_grad():
        expected = logits_in(model(batch["pixel_values"]))
    logits = predict(model, data, 16)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
    assert compare("accuracy", logits, data.labels).n == 40


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "method", ["magnitude", "wanda", "sparsegpt", "alps", "taylor", "fisher", "random"]
)
def test_each_method_prunes_them(kind: str, method: Any, data: Encoded) -> None:
    model = MODELS[kind]().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibration = Calibration([batch for _, batch in data.batches(16)])
    report = prune(model, PruningConfig(method=method, sparsity=0.5), calibration)
    assert report.actual == pytest.approx(0.5, abs=0.02)
    names = [layer.name for layer in report.layers]
    assert calculate_sparsity(model, names).targets == pytest.approx(0.5, abs=0.02)
    assert any("1" in name or "grouped" in name or "3" in name for name in names)
    if method == "magnitude":  # what stays is what it was
        for name in names:
            weight, old = model.get_parameter(f"{name}.weight"), before[f"{name}.weight"]
            kept = weight != 0
            assert torch.equal(weight[kept], old[kept])
            assert old[~kept].abs().max() <= old[kept].abs().min()
    assert np.isfinite(predict(model, data, 16)).all()


def test_a_model_without_logits(data: Encoded) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, pixel_values: Tensor) -> list[float]:
            return pixel_values.flatten().tolist()

    with pytest.raises(ModelError, match="returns list without logits"):
        predict(Pair(), data, 16)
