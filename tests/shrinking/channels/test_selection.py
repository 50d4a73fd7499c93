"""Scores, elimination, ridge and widths of channels against independent references."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn

from hfcompress.calibration.batches import Calibration
from hfcompress.shrinking.channels.graph import trace
from hfcompress.shrinking.channels.repair import ridge
from hfcompress.shrinking.channels.scores import channel_scores
from hfcompress.shrinking.config import Score
from hfcompress.shrinking.obs import Reader, eliminate_shared
from tests.tiny_images import convnet, convnet_batches


def scores(network: str, score: Score) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    model, rows = convnet(network), Calibration(convnet_batches(network))
    graph = trace(model, rows.batches[0])
    return model, graph, channel_scores(model, graph, score, rows)


def test_scores_of_weights() -> None:
    """The inner channels of a ResNet block: made by one filter each, read by one convolution."""
    model, _, found = scores("resnet", "magnitude")
    layers = model.resnet.encoder.stages[1].layers[1].layer
    name = "resnet.encoder.stages.1.layers.1.layer.0.convolution"
    made, read = layers[0].convolution.weight.double(), layers[1].convolution.weight.double()
    expected = (made.square().sum((1, 2, 3)) + read.square().sum((0, 2, 3))).sqrt()
    torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-5)
    sums = scores("resnet", "l1")[2]
    torch.testing.assert_close(sums[name].double(), made.abs().sum((1, 2, 3)), rtol=1e-5, atol=1e-5)
    scales = scores("resnet", "batch_norm")[2]
    torch.testing.assert_close(scales[name], layers[0].normalization.weight.abs())
    stream = scores("resnet", "batch_norm")[2]["resnet.embedder.embedder.convolution"]
    both = model.resnet.encoder.stages[0].layers[0]
    expected = (model.resnet.embedder.embedder.normalization.weight.abs()
                + both.layer[1].normalization.weight.abs()) / 2  # fmt: skip
    if not isinstance(both.shortcut, nn.Identity):  # the stem is then a group of its own
        expected = model.resnet.embedder.embedder.normalization.weight.abs()
    torch.testing.assert_close(stream, expected)


def test_grouped_convolutions_count_one_channel_of_each_group() -> None:
    model, graph, found = scores("grouped", "magnitude")
    assert {g.name: g.units for g in graph.groups}["stem"] == 4
    made = model.stem.weight.double().square().sum((1, 2, 3)).view(4, 4).sum(0)
    read = model.grouped.weight.double().square().sum((0, 2, 3))
    expected = (made + read).sqrt()
    torch.testing.assert_close(found["stem"].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", ["taylor", "fisher"])
def test_gradients_of_masks(score: Score) -> None:
    """By the chain rule: the sum over pixels of what is read times its gradient, row by row."""
    model, _, found = scores("resnet", score)
    name = "resnet.encoder.stages.1.layers.1.layer.0.convolution"
    reader = model.resnet.encoder.stages[1].layers[1].layer[1].convolution
    total, rows = torch.zeros(16, dtype=torch.double), 0
    model = model.double()
    for batch in convnet_batches("resnet"):
        seen: list[torch.Tensor] = []
        hook = reader.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        loss = model(batch["pixel_values"].double(), labels=batch["labels"]).loss
        hook.remove()
        (gradient,) = torch.autograd.grad(loss * len(batch["labels"]), seen)
        each = (gradient * seen[0].detach()).sum((2, 3))
        total += (each.square() if score == "fisher" else each.abs()).sum(0)
        rows += len(each)
    torch.testing.assert_close(found[name].double(), total / rows, rtol=1e-3, atol=1e-7)


def test_the_unit_goes_that_costs_all_readers_least() -> None:
    """One step against least squares over all choices."""
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(200, 15, generator=generator).double() for _ in range(2)]
    data = [rows @ torch.randn(15, 15, generator=generator).double() for rows in data]
    weights = [torch.randn(7, 15, generator=generator).double() for _ in range(2)]
    importances = (1.0, 3.0)
    sizes = (2, 3)  # the first reader has columns that are nobody's, at the end
    readers = [
        Reader(w, (x.T @ x / len(x)).float(), size, moved)
        for x, w, size, moved in zip(data, weights, sizes, importances, strict=True)
    ]
    kept = eliminate_shared(readers, 5, [4], damping=1e-9)[4]
    costs = {}
    for stay in combinations(range(5), 4):
        cost = 0.0
        for x, w, size, moved in zip(data, weights, sizes, importances, strict=True):
            own = [unit * size + place for unit in stay for place in range(size)]
            left = x[:, own + list(range(5 * size, 15))]
            wanted = x @ w.T
            residual = wanted - left @ torch.linalg.lstsq(left, wanted).solution
            cost += moved * float(residual.square().sum())
        costs[stay] = cost
    assert tuple(kept.tolist()) == min(costs, key=costs.__getitem__)


def test_ridge_is_least_squares_with_a_pull() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 50, 6, generator=generator).double()
    wanted = torch.randn(2, 50, 3, generator=generator).double()
    weight = torch.randn(2, 3, 6, generator=generator).double()
    gram, cross = inputs.mT @ inputs / 50, wanted.mT @ inputs / 50
    found = ridge(weight, gram, cross, 0.1)
    for part in range(2):
        pull = (0.1 * gram[part].diagonal().mean() * 50).sqrt()
        rows = torch.cat([inputs[part], pull * torch.eye(6).double()])
        goal = torch.cat([wanted[part], pull * weight[part].T])
        expected = torch.linalg.lstsq(rows, goal).solution.T
        torch.testing.assert_close(found[part], expected)
