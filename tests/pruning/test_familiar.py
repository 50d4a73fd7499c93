"""Names of courses and papers: each does what its documentation says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hfcompress
from hfcompress.errors import ConfigError, TargetError
from hfcompress.measure.size import CompressionMetrics, count_parameters
from hfcompress.pruning.familiar import (
    progressive_prune,
    prune_model_by_magnitude,
    prune_structured,
    prune_weights_by_magnitude,
)
from tests.plain_networks import NETWORKS, CourseStudent, CourseTeacher


def test_the_courses_models_have_their_sizes() -> None:
    assert count_parameters(CourseStudent()) == 136_874
    assert CompressionMetrics.count_parameters(CourseTeacher()) == 750_346
    assert CompressionMetrics.calculate_model_size(CourseStudent()) > 4 * 136_874
    found = CompressionMetrics.analyze_weight_distribution(CourseStudent(), ["fc2"])
    assert found.count == 640


@pytest.mark.parametrize("layer", [nn.Linear(8, 6), nn.Conv2d(3, 4, 3), nn.Conv1d(2, 4, 5)])
def test_a_layers_smallest_weights_go(layer: nn.Module) -> None:
    before = layer.get_parameter("weight").detach().clone()
    report = prune_weights_by_magnitude(layer, 0.25)
    weight = layer.get_parameter("weight")
    zeros = weight == 0
    assert int(zeros.sum()) == round(0.25 * weight.numel()) == report.zeros
    assert before[zeros].abs().max() <= before[~zeros].abs().min()
    assert torch.equal(weight[~zeros], before[~zeros])


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_matrix_of_a_model_is_pruned(kind: str) -> None:
    model = NETWORKS[kind].model()
    report = prune_model_by_magnitude(model, 0.5)
    assert report.actual == pytest.approx(0.5, abs=0.02)
    assert report.untouched == {}
    with pytest.raises(TargetError, match="Flatten has no weight matrix"):
        prune_model_by_magnitude(nn.Flatten())
    with pytest.raises(ConfigError, match="sparsity"):
        prune_model_by_magnitude(model, 1.5)


def test_progressive_pruning_reaches_its_target() -> None:
    model = NETWORKS["mlp"].model()
    seen: list[float] = []

    def train(model: nn.Module) -> None:
        weight = model.get_parameter("last.weight")
        seen.append(float((weight == 0).float().mean()))

    rounds = progressive_prune(model, 0.8, 3, train, lambda model: 1.0)
    assert len(rounds) == len(seen) == 3
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 6, 3), (2, 3, 9, 9)),
        (nn.Conv1d(2, 6, 3), (2, 2, 9)),
        (nn.Linear(5, 6), (2, 5)),
    ],
)
def test_a_layer_loses_its_smallest_filters(layer: nn.Module, shape: tuple[int, ...]) -> None:
    weight = layer.get_parameter("weight").detach().clone()
    smaller, kept = prune_structured(layer, 2)  # type: ignore[type-var]
    norms = weight.abs().flatten(1).sum(1)
    assert sorted(norms.argsort()[2:].tolist()) == kept.tolist()
    x = torch.randn(shape)
    torch.testing.assert_close(smaller(x), layer(x)[:, kept])
    assert torch.equal(layer.get_parameter("weight"), weight)
    with pytest.raises(ConfigError, match="cannot remove 6 of 6 filters; give a number below 6"):
        prune_structured(layer, 6)  # type: ignore[type-var]


def test_filters_of_groups_are_refused() -> None:
    with pytest.raises(TargetError, match=r"use hfcompress\.shrink"):
        prune_structured(nn.Conv2d(4, 4, 3, groups=2), 1)


def test_the_names_are_public() -> None:
    for name in ("prune_weights_by_magnitude", "distill", "train_one_epoch", "evaluate"):
        assert callable(getattr(hfcompress, name))
