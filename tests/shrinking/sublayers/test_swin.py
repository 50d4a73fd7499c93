"""Swin: layers in stages, heads with position tables of their own, attention in windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import SwinConfig, SwinForImageClassification

from hfcompress.calibration.batches import Calibration
from hfcompress.errors import TargetError
from hfcompress.measure.macs import count_macs
from hfcompress.measure.size import count_parameters
from hfcompress.models.architectures import blocks, bridges
from hfcompress.models.sublayers import sublayers
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.quality import divergence, predictions
from hfcompress.shrinking.report import ShrinkReport
from hfcompress.shrinking.shrink import shrink
from hfcompress.shrinking.sublayers.costs import layer_macs
from hfcompress.shrinking.sublayers.scores import masked


def swin() -> Any:
    """Two stages of two layers: 2 and 4 heads, 48 and 96 neurons."""
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=32, depths=[2, 2], num_heads=[2, 4],
        window_size=4, mlp_ratio=1.5, initializer_range=0.25, num_labels=3,  # type: ignore[call-arg]
    )  # fmt: skip
    model: Any = SwinForImageClassification(config)
    for name, parameter in model.named_parameters():
        if "position_bias_table" in name or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def rows() -> Calibration:
    generator = torch.Generator().manual_seed(1)
    return Calibration(
        [
            {
                "pixel_values": torch.randn(4, 3, 32, 32, generator=generator),
                "labels": torch.randint(0, 3, (4,), generator=generator),
            }
            for _ in range(2)
        ]
    )


def shrunk(**config: Any) -> tuple[Any, ShrinkReport]:
    model = swin()
    return model, shrink(model, ShrinkConfig(**config), rows())


def drift(model: Any) -> float:
    return divergence(predictions(swin(), rows()), predictions(model, rows()))


def test_stages_are_found() -> None:
    model = swin()
    assert len(blocks(model)) == 4
    assert list(bridges(model)) == ["swin.encoder.layers.0.blocks.1"]
    parts = sublayers(model)
    assert [part.units(model) for part in parts] == [2, 48, 2, 48, 4, 96, 4, 96]
    # For one of 64 tokens, against the count of a forward pass without embedding, merge and head.
    counted = count_macs(model, {"pixel_values": torch.zeros(1, 3, 32, 32)})
    layers = sum(counted.modules[name] for name in blocks(model))
    assert 64 * layer_macs(model, parts, 64.0) == layers


def test_half_and_nearer_than_magnitude(tmp_path: Path) -> None:
    model, report = shrunk(macs=0.5)
    assert 0.4 < report.macs.share <= 0.5
    assert drift(model) < drift(shrunk(macs=0.5, score="magnitude")[0]) / 2
    model.save_pretrained(tmp_path)
    again: Any = SwinForImageClassification.from_pretrained(tmp_path)
    for ours, theirs in zip(predictions(model, rows()), predictions(again, rows()), strict=True):
        assert torch.equal(ours, theirs)
    again.train()
    again(**rows().batches[0]).loss.backward()


@pytest.mark.parametrize("score", ["l1", "taylor", "fisher"])
def test_what_goes_is_what_its_mask_zeroes(score: str) -> None:
    model, report = shrunk(parameters=50_000, score=score)
    assert count_parameters(model) == report.parameters.shrunk <= 50_000
    dense, parts = swin(), sublayers(swin())
    masks = {
        part.name: torch.zeros(part.units(dense)).index_fill(0, torch.tensor(told.keep).long(), 1)
        for part, told in zip(parts, report.parts, strict=True)
    }
    with masked(dense, parts, masks):
        expected = predictions(dense, rows())
    torch.testing.assert_close(predictions(model, rows()), expected, atol=1e-4, rtol=1e-4)


def test_what_swin_cannot_do() -> None:
    with pytest.raises(TargetError, match="has stages, whose layers cannot be dropped"):
        shrunk(layers=2)
    with pytest.raises(TargetError, match="removes heads and neurons from"):
        shrunk(macs=0.5, heads=False, neurons=False)
    with pytest.raises(TargetError, match="has no batch norms"):
        shrunk(macs=0.5, score="batch_norm")
