"""Channels of convolutional networks by `shrink`: families, budgets, what must not change."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification

from hfcompress.calibration.batches import Calibration, run_on
from hfcompress.errors import CalibrationError, ConfigError, TargetError
from hfcompress.measure.macs import count_macs
from hfcompress.measure.size import count_parameters
from hfcompress.shrinking.channels.costs import macs, tensor_bytes
from hfcompress.shrinking.channels.graph import trace
from hfcompress.shrinking.channels.groups import ChannelGroup
from hfcompress.shrinking.channels.scores import masked_channels
from hfcompress.shrinking.channels.surgery import cut
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.quality import divergence, predictions
from hfcompress.shrinking.report import ShrinkReport
from hfcompress.shrinking.shrink import shrink
from tests.tiny_images import CONVNETS, CONVNETS_AND_GROUPED, convnet, convnet_batches

HALF: dict[str, Any] = {"macs": 0.5}
PLAIN: dict[str, Any] = {**HALF, "score": "magnitude"}


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcompress.shrinking.channels.budget._SECONDS", 0.05)


def shrunk(network: str = "resnet", **config: Any) -> tuple[Any, ShrinkReport]:
    model = convnet(network)
    config = {"table_rows": 8, **config}
    return model, shrink(model, ShrinkConfig(**config), Calibration(convnet_batches(network)))


def drift(model: Any, network: str = "resnet") -> float:
    """KL of the predictions from the dense network's."""
    rows = Calibration(convnet_batches(network))
    return divergence(predictions(convnet(network), rows), predictions(model, rows))


def logits(model: nn.Module, network: str) -> torch.Tensor:
    return predictions(model, Calibration(convnet_batches(network)))[0]


def one_row(network: str) -> dict[str, torch.Tensor]:
    (batch, *_) = convnet_batches(network)
    return {key: value[:1] for key, value in batch.items() if key != "labels"}


def normed_together(model: nn.Module, group: ChannelGroup) -> bool:
    """Whether a norm mixes the group's channels, so that even a zero counts."""
    norms = [model.get_submodule(place.module) for place in group.of("features")]
    return any(isinstance(norm, (nn.LayerNorm, nn.GroupNorm)) for norm in norms)


def silence(model: nn.Module, group: ChannelGroup, units: torch.Tensor) -> None:
    """Make units put out zero: their filters, biases and scales."""
    with torch.no_grad():
        for place in group.places:
            where = place.index[torch.isin(place.unit, units)]
            if place.side in ("outputs", "features"):
                for parameter in model.get_submodule(place.module)._parameters.values():
                    if parameter is not None:
                        parameter[where] = 0


@pytest.mark.parametrize("network", CONVNETS_AND_GROUPED)
def test_channels_whose_scale_is_zero_go_without_a_trace(network: str) -> None:
    model = convnet(network)
    graph = trace(model, one_row(network))
    silent = [g for g in graph.groups if g.units > 1 and not normed_together(model, g)]
    assert len(silent) > 1
    for group in silent:
        silence(model, group, torch.arange(1, group.units, 2))
    before = logits(model, network)
    size = count_parameters(model)
    cut(model, graph.groups, {g.name: torch.arange(0, g.units, 2) for g in silent})
    assert count_parameters(model) < size
    torch.testing.assert_close(logits(model, network), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("network", CONVNETS_AND_GROUPED)
def test_what_is_counted_is_what_runs(network: str) -> None:
    """Predicted multiply-accumulates and bytes are those of the cut network."""
    model = convnet(network)
    graph = trace(model, one_row(network))
    widths = {group.name: -(-group.units * 2 // 3) for group in graph.groups}
    counted, stored = macs(graph), tensor_bytes(model, graph)
    full = {group.name: group.units for group in graph.groups}
    assert counted.total(full) == count_macs(model, one_row(network)).total
    name = graph.groups[-1].name
    step = counted.total(full) - counted.total({**full, name: widths[name]})
    assert counted.saved(full, name, widths[name]) == pytest.approx(step)
    cut(model, graph.groups, {name: torch.arange(width) for name, width in widths.items()})
    assert counted.total(widths) == count_macs(model, one_row(network)).total
    assert stored.total(widths) == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("network", ["resnet", "mobilenet_v2", "efficientnet"])
def test_what_goes_is_what_its_mask_zeroes(network: str) -> None:
    """Without repair the shrunk network is the dense one with masks."""
    model, report = shrunk(network, **PLAIN)
    dense = convnet(network)
    graph = trace(dense, one_row(network))
    kept = {part.name: torch.tensor(part.keep) for part in report.parts}
    masks = {g.name: torch.zeros(g.units).index_fill(0, kept[g.name], 1) for g in graph.groups}
    with masked_channels(dense, graph.groups, masks):
        expected = logits(dense, network)
    torch.testing.assert_close(logits(model, network), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("network", CONVNETS)
def test_every_family_trains_saves_and_reloads(network: str, tmp_path: Path) -> None:
    model = convnet(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    report = shrink(model, ShrinkConfig(**PLAIN), Calibration(convnet_batches(network)))
    assert 0.3 < report.macs.share <= 0.5
    assert report.parameters.shrunk == count_parameters(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    model(**convnet_batches(network)[0]).loss.backward()
    optimizer.step()  # made before; it holds the parameters that were cut
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > len(before) / 2
    model.eval()
    model.save_pretrained(tmp_path)
    again: Any = AutoModelForImageClassification.from_pretrained(tmp_path)
    kept, loaded = model.state_dict(), again.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in kept.items())
    # Some processors' convolutions round differently with the alignment of the weights.
    torch.testing.assert_close(logits(again, network), logits(model, network))
    again.train()
    again(**convnet_batches(network)[0]).loss.backward()
    depthwise = [m for m in again.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert all(m.groups == m.in_channels == m.weight.shape[0] for m in depthwise)


@pytest.mark.parametrize("network", ["resnet", "resnet-bottleneck", "convnext", "grouped"])
def test_reconstruction_is_nearer_than_magnitude(network: str) -> None:
    model, report = shrunk(network, **HALF)
    assert 0.4 < report.macs.share <= 0.5
    assert drift(model, network) < drift(shrunk(network, **PLAIN)[0], network) / 2
    assert any(part.error for part in report.parts)


def test_each_option_of_repair_counts() -> None:
    plain = drift(shrunk(**PLAIN)[0])
    mean = drift(shrunk(**PLAIN, repair="mean", batch_norms="keep")[0])
    ridge = drift(shrunk(**PLAIN, repair="ridge")[0])
    assert ridge < mean < plain
    assert drift(shrunk(**HALF)[0]) != drift(shrunk(**HALF, damping=1.0)[0])
    with_directions = [part.keep for part in shrunk(**HALF)[1].parts]
    assert [p.keep for p in shrunk(**HALF, output_importance=0.0)[1].parts] != with_directions


def test_batch_norms_are_measured_on_the_calibration_rows() -> None:
    kept, _ = shrunk(**PLAIN, batch_norms="keep")
    model, _ = shrunk(**PLAIN, batch_norms="estimate")
    seen: list[torch.Tensor] = []
    first = model.resnet.embedder.embedder
    first.convolution.register_forward_hook(lambda _, __, out: seen.append(out.detach().double()))
    with torch.no_grad():
        for batch in convnet_batches("resnet"):
            run_on(model, batch)
    means = torch.stack([one.mean((0, 2, 3)) for one in seen]).mean(0)
    variances = torch.stack([one.var((0, 2, 3)) for one in seen]).mean(0)
    torch.testing.assert_close(first.normalization.running_mean.double(), means, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        first.normalization.running_var.double(), variances, rtol=1e-4, atol=0
    )
    assert first.normalization.momentum == 0.1
    assert not model.training
    assert not torch.equal(kept.resnet.embedder.embedder.normalization.running_mean, means.float())


@pytest.mark.parametrize(
    "config",
    [{"parameters": 7000}, {"bytes": 30_000}, {"speedup": 1.0}],
    ids=lambda config: next(iter(config)),
)
def test_budgets(config: dict[str, Any]) -> None:
    model, report = shrunk(score="magnitude", **config)
    if "parameters" in config:
        assert 6000 < count_parameters(model) == report.parameters.shrunk <= 7000
    elif "bytes" in config:
        assert 25_000 < sum(p.nbytes for p in model.parameters()) <= 30_000
    else:
        assert report.latency is not None
        assert report.latency.measured is not None


def test_budgets_out_of_reach_say_the_least() -> None:
    with pytest.raises(ConfigError, match=r"the least is [0-9,]+"):
        shrunk(**{**PLAIN, "macs": 0.0001})
    with pytest.raises(ConfigError, match="above the dense model"):
        shrunk(score="magnitude", parameters=10**9)
    with pytest.raises(ConfigError, match="above the dense model, which takes"):
        shrunk(score="magnitude", latency=1e6)
    with pytest.raises(ConfigError, match=r"the least is .* ms"):
        shrunk(score="magnitude", speedup=1e6)
    with pytest.raises(CalibrationError, match="measured on real rows"):
        shrink(convnet("resnet"), ShrinkConfig(speedup=2, score="magnitude"))


def test_allocations_differ_and_fit() -> None:
    widths = set()
    for allocation in ("uniform", "global", "optimal"):
        model, report = shrunk(**PLAIN, allocation=allocation)
        assert report.macs.shrunk == count_macs(model, one_row("resnet")).total
        assert report.macs.share <= 0.5
        widths.add(tuple(part.width for part in report.parts))
    assert len(widths) == 3


def test_widths_come_in_multiples_and_keep_the_least() -> None:
    _, report = shrunk(**PLAIN, multiple_of=4)
    assert all(part.width % 4 == 0 for part in report.parts)
    _, report = shrunk(**{**PLAIN, "macs": 0.6}, min_channels=6)
    assert min(part.width for part in report.parts) == 6


def test_rounds_recover_in_between_and_end_at_the_budget() -> None:
    model, seen = convnet("resnet"), []
    config = ShrinkConfig(**HALF, rounds=2)
    report = shrink(
        model,
        config,
        Calibration(convnet_batches("resnet")),
        recover=lambda network: seen.append(count_parameters(network)),
    )
    assert len(seen) == 1
    assert report.parameters.dense > seen[0] > report.parameters.shrunk
    assert report.macs.share <= 0.5
    graph = trace(convnet("resnet"), one_row("resnet"))
    assert [g.name for g in graph.groups] == [part.name for part in report.parts]
    assert drift(model) < drift(shrunk(**PLAIN)[0])


def test_a_dry_run_says_what_would_go() -> None:
    model = convnet("resnet")
    before = copy.deepcopy(model.state_dict())
    report = shrink(
        model, ShrinkConfig(**PLAIN, dry_run=True), Calibration(convnet_batches("resnet"))
    )
    assert report.dry_run
    real = shrunk(**PLAIN)[1]
    assert [part.keep for part in report.parts] == [part.keep for part in real.parts]
    assert report.parameters == real.parameters
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert "channels" in str(report)


def test_no_calibration_is_needed_where_the_config_says_the_size() -> None:
    model = convnet("convnext")
    assert shrink(model, ShrinkConfig(**PLAIN)).macs.share <= 0.5
    with pytest.raises(CalibrationError, match="image size of Grouped is not known"):
        shrink(convnet("grouped"), ShrinkConfig(**PLAIN))


def test_attention_that_is_no_known_familys_keeps_its_width() -> None:
    """Units of queries, keys and values cannot go one by one; what lies between Linears can."""
    graph = trace(convnet("fused"), one_row("fused"))
    assert [(group.name, group.units) for group in graph.groups] == [("fc1", 64)]
    model, report = shrunk("fused", macs=0.8)
    assert 0.7 < report.macs.share <= 0.8
    fc1: Any = model.get_submodule("fc1")
    assert fc1.out_features == len(report.parts[0].keep) < 64
    assert drift(model, "fused") < drift(shrunk("fused", macs=0.8, score="magnitude")[0], "fused")
    with pytest.raises(ConfigError, match="is below what removing channels can reach here"):
        shrunk("fused", macs=0.2)


def test_what_cannot_go_is_said() -> None:
    model = convnet("resnet")
    graph = trace(model, one_row("resnet"))
    with pytest.raises(TargetError, match="would lose all of its channels"):
        cut(model, graph.groups, {graph.groups[0].name: torch.arange(0)})
    with pytest.raises(TargetError, match="write channels: true"):
        shrunk(**PLAIN, channels=False)
    with pytest.raises(TargetError, match="dropped from transformers only"):
        shrunk(layers=1)
    with pytest.raises(TargetError, match="has no batch norm"):
        shrunk("convnext", **HALF, score="batch_norm")
    with pytest.raises(ConfigError, match="all false"):
        ShrinkConfig(**HALF, heads=False, neurons=False, channels=False)


def test_frozen_parameters_are_cut_and_stay_frozen() -> None:
    model = convnet("resnet").requires_grad_(False)
    shrink(model, ShrinkConfig(**PLAIN), Calibration(convnet_batches("resnet")))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    run_on(model, convnet_batches("resnet")[0])
