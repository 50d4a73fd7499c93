"""Unstructured pruning of convolutions of every kind: every method, N:M and blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.hooks import call_order
from hfcompress.models.architectures import default_targets
from hfcompress.models.matrices import weight_matrix
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import prune
from hfcompress.pruning.sequential import layer_by_layer
from tests.tiny_images import CONVNETS_AND_GROUPED, convnet, convnet_batches

METHODS = (
    "magnitude", "lamp", "random", "wanda", "sparsegpt", "alps", "taylor", "fisher", "obert",
)  # fmt: skip
# MobileNetV2 has 52 layers: the slow methods are tried on the others.
CASES = [
    (n, m) for n in CONVNETS_AND_GROUPED for m in METHODS if n != "mobilenet_v2" or m in METHODS[:4]
]


@pytest.mark.parametrize(("network", "method"), CASES)
def test_every_method(network: str, method: Any) -> None:
    model = convnet(network)
    report = prune(
        model,
        PruningConfig(method=method, sparsity=0.5),
        Calibration(convnet_batches(network, 1, 4)),
    )
    zeros = sum(int((weight_matrix(m) == 0).sum()) for m in default_targets(model).values())
    total = sum(weight_matrix(m).numel() for m in default_targets(model).values())
    assert sum(layer.zeros for layer in report.layers) == zeros
    assert zeros / total == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt", "wanda"])
def test_patterns_hold_on_the_flattened_kernel(method: Any) -> None:
    model = convnet("grouped")
    prune(
        model, PruningConfig(method=method, pattern="2:4"), Calibration(convnet_batches("grouped"))
    )
    for module in default_targets(model).values():
        kept = (weight_matrix(module) != 0).long()
        whole = kept.shape[1] // 4 * 4
        assert int(kept[:, :whole].unflatten(1, (-1, 4)).sum(-1).max()) <= 2  # type: ignore[no-untyped-call]
    model = convnet("grouped")
    config = PruningConfig(method=method, pattern="2x1", sparsity=0.5, scope="layer")
    prune(model, config, Calibration(convnet_batches("grouped")))
    for module in default_targets(model).values():
        kept = weight_matrix(module) != 0
        if len(kept) // getattr(module, "groups", 1) % 2:
            continue  # blocks stay within a group, and a depthwise one has a single output
        pairs = kept[: len(kept) // 2 * 2].unflatten(0, (-1, 2))  # type: ignore[no-untyped-call]
        assert bool((pairs[:, 0] == pairs[:, 1]).all())


def test_wanda_on_a_grouped_convolution() -> None:
    """Each weight by the norm of what it is multiplied with, in float64."""
    model = convnet("grouped")
    layer, weight = model.grouped, model.grouped.weight.detach().double()
    rows = convnet_batches("grouped")
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    for batch in rows:
        model(batch["image"])
    hook.remove()
    scores = torch.empty(24, 4, 3, 3, dtype=torch.double)
    for output in range(24):
        for channel in range(4):
            for row in range(3):
                for column in range(3):
                    source = (output // 6) * 4 + channel
                    read = torch.cat([
                        nn.functional.pad(x[:, source], (1, 1, 1, 1))[
                            :, row : row + 15 : 2, column : column + 15 : 2
                        ].flatten() for x in seen
                    ])  # fmt: skip
                    scores[output, channel, row, column] = read.square().sum().sqrt()
    scores = (scores * weight.abs()).flatten(1)
    prune(model, PruningConfig(method="wanda", sparsity=0.5, targets=("grouped",)),
          Calibration(rows))  # fmt: skip
    kept = weight_matrix(layer) != 0
    for output in range(24):
        assert set(scores[output].topk(18).indices.tolist()) == set(
            kept[output].nonzero()[:, 0].tolist()
        )


def test_a_grouped_convolution_is_solved_group_by_group() -> None:
    """sparsegpt of the whole is sparsegpt of each group as a convolution of its own."""
    generator = torch.Generator().manual_seed(0)
    images_in = torch.randn(6, 8, 7, 7, generator=generator)
    whole: Any = nn.Sequential(nn.Conv2d(8, 12, 3, groups=2, bias=False), nn.Flatten())
    parts: list[Any] = [
        nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.Flatten()) for _ in range(2)
    ]
    config = PruningConfig(method="sparsegpt", sparsity=0.5, scope="row", targets=("0",))
    for number, part in enumerate(parts):
        part[0].weight.data = whole[0].weight.data[number * 6 : number * 6 + 6].clone()
        mine = images_in[:, number * 4 : number * 4 + 4]
        prune(part, config, Calibration([{"input": mine}]))
    prune(whole, config, Calibration([{"input": images_in}]))
    expected = torch.cat([part[0].weight for part in parts])
    torch.testing.assert_close(whole[0].weight, expected, atol=1e-5, rtol=1e-4)


def test_convolutions_that_read_one_input_differently_do_not_share_moments() -> None:
    model = convnet("resnet")
    layer = model.resnet.encoder.stages[1].layers[0]
    modules = {"main": layer.layer[0].convolution, "shortcut": layer.shortcut.convolution}
    rows = Calibration(convnet_batches("resnet"))
    groups = call_order(lambda: rows.run(model, 0), modules)
    assert sorted(group.names for group in groups) == [("main",), ("shortcut",)]


def test_stages_of_other_sizes_pass_on_what_was_pruned() -> None:
    """Block by block gives the moments of whole passes."""
    model = convnet("resnet")
    modules = default_targets(model)
    rows = Calibration(convnet_batches("resnet"))
    steps = layer_by_layer(model, modules, rows, dense_outputs=False, memory=1 << 30)
    found = {name: moments for step in steps for name, moments in step.items()}
    whole = rows.moments(model, modules)
    assert found.keys() == whole.keys()
    for name, moments in whole.items():
        torch.testing.assert_close(found[name].gram, moments.gram, atol=1e-4, rtol=1e-4)
