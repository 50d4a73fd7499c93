"""Models whose layers differ from an encoder's: what `prune` does with them, and what it says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration
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
        return self.out(states)


def test_a_layer_that_does_not_reach_the_logits_is_pruned_and_named() -> None:
    model = Pooled()
    batches = [{"x": torch.randn(32, 8)}]
    report = prune(model, PruningConfig(method="alps", sparsity=0.6), Calibration(batches))
    assert zeros(model.side.weight) == round(0.6 * 256) / 256
    assert abs(report.actual - 0.6) < 1e-2
    assert "side: not connected to the model's output" in " ".join(report.notes)
