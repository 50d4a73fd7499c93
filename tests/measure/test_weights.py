from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hfcompress.errors import ConfigError, ModelError, TargetError
from hfcompress.measure import weights as module
from hfcompress.measure.weights import analyze_weight_distribution


def pruned_weights() -> torch.Tensor:
    torch.manual_seed(0)
    weight = torch.randn(40, 50) + 0.3
    weight[weight.abs() < 0.2] = 0.0
    return weight


def test_statistics_equal_numpy_in_float64() -> None:
    weight = pruned_weights()
    found, exact = analyze_weight_distribution(weight), weight.double().numpy()
    assert (found.count, found.zeros) == (2000, int((exact == 0).sum()))
    assert found.sparsity == found.zeros / 2000
    assert (found.minimum, found.maximum) == (exact.min(), exact.max())
    assert found.mean == pytest.approx(exact.mean(), rel=1e-5)
    assert found.std == pytest.approx(exact.std(), rel=1e-5)


def test_histogram_equals_numpy_without_the_spike() -> None:
    weight = pruned_weights()
    found = analyze_weight_distribution(weight, bins=9)
    values = weight[weight != 0].numpy()
    counts, _ = np.histogram(values, bins=np.asarray(found.edges))
    assert found.counts == tuple(counts.tolist())
    assert found.zeros > 0
    assert found.zeros + found.below + sum(found.counts) + found.above == found.count


def test_an_outlier_does_not_squeeze_the_histogram() -> None:
    weight = pruned_weights()
    weight[0, 0], weight[0, 1] = 1000.0, -2000.0
    found = analyze_weight_distribution(weight)
    assert (found.below, found.above) == (1, 1)
    assert found.edges[0] > -300
    assert found.minimum == -2000.0


def test_pruned_and_dense_histograms_share_edges() -> None:
    dense = analyze_weight_distribution(torch.randn(100, 10), bins=5)
    pruned = analyze_weight_distribution(torch.full((3, 3), 100.0), edges=dense.edges)
    assert pruned.edges == dense.edges
    assert (pruned.above, sum(pruned.counts)) == (9, 0)


def test_zeros_outside_the_edges_are_not_counted_as_below() -> None:
    found = analyze_weight_distribution(torch.tensor([0.0, 0.0, 1.5, 0.5]), edges=[1.0, 2.0])
    assert (found.zeros, found.below, found.counts, found.above) == (2, 1, (1,), 0)


def test_a_model_is_merged_layer_by_layer_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)
    torch.manual_seed(0)
    linear, convolution = nn.Linear(6, 5), nn.Conv2d(2, 3, 3)
    model = nn.Sequential(linear, convolution)
    joined = torch.cat([linear.weight.flatten(), convolution.weight.flatten()]).detach()
    found = analyze_weight_distribution(model, bins=7)
    exact = joined.double().numpy()
    assert (found.mean, found.std) == pytest.approx((exact.mean(), exact.std()), rel=1e-6)
    assert found.counts == analyze_weight_distribution(joined, edges=found.edges).counts
    alone = analyze_weight_distribution(model, targets=["1"])
    assert alone.count == 54


def test_equal_weights_and_half_precision_have_a_histogram() -> None:
    found = analyze_weight_distribution(torch.full((4,), 2.0, dtype=torch.bfloat16), bins=3)
    assert (found.counts, found.std) == ((0, 4, 0), 0.0)


def test_plain_is_lists_and_numbers() -> None:
    plain = analyze_weight_distribution(torch.arange(4.0), bins=2).to_dict()
    assert plain["counts"] == [1, 2]
    assert plain["zeros"] == 1


def test_bad_input_is_named() -> None:
    linear = nn.Linear(2, 2)
    model = nn.Sequential(linear)
    with pytest.raises(ConfigError, match="bins"):
        analyze_weight_distribution(model, bins=0)
    with pytest.raises(ConfigError, match="equally spaced"):
        analyze_weight_distribution(model, edges=[0.0, 1.0, 5.0])
    with pytest.raises(TargetError, match="no weights"):
        analyze_weight_distribution(nn.LayerNorm(3))
    with torch.no_grad():
        linear.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="'0'"):
        analyze_weight_distribution(model)
