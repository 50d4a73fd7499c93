"""What pruning costs a layer, estimated from the dense model's moments: for allocations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfcompress.calibration.moments import Moments, grouped_weight
from hfcompress.pruning import scores
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.reconstruction import damped, inverse_upper, sparsegpt

LEVELS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
"""Sparsities at which errors are computed; between them they are interpolated."""


def surgeon_scores(module: nn.Module, moments: Moments, damping: float) -> Tensor:
    """w^2 / (2 [H^-1]_jj) of each weight, outputs x inputs.

    Args:
        module: the layer.
        moments: of its inputs.
        damping: share of the mean diagonal that is added to the Gram matrix.
    """
    parts = []
    for weight, gram in zip(grouped_weight(module), moments.gram, strict=True):
        _, factor, _ = damped(gram, damping)
        inverse = torch.cholesky_inverse(factor).diagonal().to(weight.dtype)
        parts.append(scores.surgeon(weight, inverse))
    return torch.cat(parts)


def layer_errors(
    module: nn.Module,
    moments: Moments,
    importance: Tensor,
    masking: Tensor | None,
    config: PruningConfig,
) -> list[float]:
    """Estimated change of the logits (root mean square) at each of `LEVELS`.

    The layer is pruned alone; the error of each output is weighted by how much the output moves
    the logits.

    Args:
        module: the dense layer.
        moments: of its inputs.
        importance: groups x outputs, mean squared gradient of the logits.
        masking: scores, outputs x inputs; None reconstructs the layer by SparseGPT.
        config: pattern and damping.
    """
    weight = grouped_weight(module)
    totals = [0.0] * len(LEVELS)
    by_group = None if masking is None else masking.view(weight.shape)
    for group in range(len(weight)):
        gram, factor, _ = damped(moments.gram[group], config.damping)
        upper = None if by_group is not None else inverse_upper(factor)
        for index, level in enumerate(LEVELS):
            score = None if by_group is None else by_group[group]
            new = _pruned(weight[group], upper, score, level, config)
            change = (new - weight[group]).double()
            errors = ((change @ gram) * change).sum(1)
            totals[index] += float((errors * importance[group]).sum())
    roots = [max(total, 0.0) ** 0.5 for total in totals]
    return [max(roots[: index + 1]) for index in range(len(roots))]  # never falling


def _pruned(
    weight: Tensor,
    upper: Tensor | None,
    score: Tensor | None,
    level: float,
    config: PruningConfig,
) -> Tensor:
    pattern = config.parsed_pattern
    choose = pattern.chooser(config.competition == "row")
    drop = round(level * weight.numel())
    if score is not None:
        return weight * choose(score, drop)
    assert upper is not None
    block = -(-config.block_size // pattern.step) * pattern.step
    return sparsegpt(weight, upper, drop, choose, block=block)
