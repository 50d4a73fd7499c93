"""Models whose layers differ from an encoder's: what `prune` does with them, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    PvtV2Config,
    PvtV2ForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hfcompress.calibration.batches import Calibration
from hfcompress.models.architectures import weight_matrix
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import prune


def zeros(weight: Tensor) -> float:
    return float((weight == 0).float().mean())


class Pooled(nn.Module):
    """``side`` runs and does not reach the logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.side, self.out = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        states = self.first(x).relu()
        self.side(states)
        logits: Tensor = self.out(states)
        return logits


def test_a_layer_that_does_not_reach_the_logits_is_pruned_and_named() -> None:
    model = Pooled()
    batches = [{"x": torch.randn(32, 8)}]
    report = prune(model, PruningConfig(method="alps", sparsity=0.6), Calibration(batches))
    assert zeros(model.side.weight) == round(0.6 * 256) / 256
    assert abs(report.actual - 0.6) < 1e-2
    assert "side: not connected to the model's output" in " ".join(report.notes)


def tiny_t5() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1,
        "num_decoder_layers": 2, "num_heads": 2, "decoder_start_token_id": 0,
    }  # fmt: skip
    model: nn.Module = T5ForConditionalGeneration(T5Config(**sizes))
    return model.eval()


def tiny_pvt() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "image_size": 32, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2], "num_labels": 3,
    }  # fmt: skip
    model: nn.Module = PvtV2ForImageClassification(PvtV2Config(**sizes))
    return model.eval()


def text_batches() -> list[dict[str, Tensor]]:
    ids = torch.randint(3, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1:, 8:] = 0
    return [{"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :7]}] * 2


def image_batches() -> list[dict[str, Tensor]]:
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": pixels}]


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "alps"])
@pytest.mark.parametrize(("make", "batches"), [(tiny_t5, text_batches), (tiny_pvt, image_batches)])
def test_every_target_of_cross_attention_and_pyramids_gets_its_zeros(
    method: str, make: Callable[[], nn.Module], batches: Callable[[], list[dict[str, Tensor]]]
) -> None:
    model = make()
    config = PruningConfig.from_dict({"method": method, "sparsity": 0.5, "allocation": "uniform"})
    report = prune(model, config, Calibration(batches()))
    found = [zeros(weight_matrix(model.get_submodule(layer.name))) for layer in report.layers]
    assert min(found) > 0.45
    assert abs(report.actual - 0.5) < 1e-2
    if isinstance(model, T5ForConditionalGeneration):
        assert model.config.use_cache
        assert model.decoder.config.use_cache
