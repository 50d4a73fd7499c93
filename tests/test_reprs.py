"""Reports and results show themselves in a line or two, not in a wall."""

from __future__ import annotations

from hfcompress import (
    CompressionPipeline,
    PruningConfig,
    QuantizationConfig,
    ShrinkConfig,
    analyze_weight_distribution,
    prune,
    quantize,
    shrink,
    sweep_module,
)
from tests.plain_networks import NETWORKS

NETWORK = NETWORKS["mlp"]


def test_reports_are_a_line_or_two() -> None:
    loader, int8 = NETWORK.loader(), QuantizationConfig(backend="torch")
    pruned = NETWORK.model()
    said = {
        repr(prune(pruned, PruningConfig(sparsity=0.5))): "576 of 1,152 weights in 2 layers",
        repr(analyze_weight_distribution(pruned)): "zero, from ",
        repr(shrink(NETWORK.model(), ShrinkConfig(macs=0.7), loader)): "of the parameters; 2 parts",
        repr(quantize(pruned, int8, loader)): "Mlp in torch, dynamic",
        repr(sweep_module(pruned, loader, [{"prune": {}}], {"prune.sparsity": [0, 0.5]})): (
            "SweepResult(2 rows, 0 failed; "
        ),
        repr(CompressionPipeline([PruningConfig(sparsity=0.5)]).run_module(pruned, None, loader)): (
            "PipelineResult(2 rows; After prune:"
        ),
    }
    for text, part in said.items():
        assert part in text
        assert len(text) < 400
