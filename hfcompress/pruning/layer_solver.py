"""One layer's problem, from its moments to its new weight and bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hfcompress.calibration.linalg import damped, damped_inverse_upper, inverse_upper, ridge_target
from hfcompress.calibration.moments import Moments, grouped_weight
from hfcompress.errors import CalibrationError
from hfcompress.models.matrices import write_matrix
from hfcompress.pruning import scores
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.patterns import Chooser
from hfcompress.pruning.reconstruction import alps_mask, least_squares, sparsegpt

InverseFactor = tuple[Tensor, float]
"""`inverse_upper` of a damped Gram matrix, and the damping."""
Memoize = Callable[[tuple[object, ...], Callable[[], InverseFactor]], InverseFactor]
"""(key, make) -> the cached result for the key, made on first use."""


@dataclass(frozen=True)
class Task:
    """The pruning task of one layer.

    Attributes:
        name: the module's name.
        drop: weights to drop.
        settled: the new weight (outputs x inputs) if it is known already, else None.
        importance: groups x outputs, the weight of each output's error; None weighs all alike.
    """

    name: str
    drop: int
    settled: Tensor | None = None
    importance: Tensor | None = None


def solve_layer(
    module: nn.Module,
    moments: Moments,
    task: Task,
    config: PruningConfig,
    note: Callable[[str], None],
    memoize: Memoize,
) -> None:
    """Prune one layer in place by a method that works on moments, group by group.

    Blocks of several outputs stay within a convolution's group.

    Args:
        module: the dense layer.
        moments: of its inputs.
        task: how much to drop.
        config: the method and its options.
        note: receives sentences for the report.
        memoize: caches factorisations for layers with the same input.

    Raises:
        CalibrationError: NaN in the statistics.
    """
    weight = grouped_weight(module).clone()
    if task.settled is not None:
        new = task.settled.view(weight.shape)
    else:
        groups = len(weight)
        new = torch.empty_like(weight)
        for group in range(groups):
            new[group] = _solve_group(
                weight[group],
                _part(moments, group, module),
                task.drop * (group + 1) // groups - task.drop * group // groups,
                None if task.importance is None else task.importance[group],
                config,
                lambda text: note(f"{task.name}: {text}"),
                partial(_inverse_factor, moments, group, config, memoize),
            )
    if not bool(torch.isfinite(new).all()):
        raise CalibrationError(
            f"pruning {task.name} gave NaN or infinite weights; "
            f"raise damping above {config.solver.damping:g}"
        )
    if config.resolved_bias_repair and _has_bias(module):
        _repair_bias(module, moments, weight, new)
    write_matrix(module, new.flatten(0, 1))


@dataclass(frozen=True)
class _Part:
    """One group's moments; outputs are without the bias.

    Attributes:
        gram: E x x'.
        mean: E x.
        cross: E (y - b) x'; None when y - b is what the dense weight makes of x.
        output: E (y - b); None likewise.
    """

    gram: Tensor
    mean: Tensor
    cross: Tensor | None = None
    output: Tensor | None = None

    def centred(self) -> _Part:
        """Second moments about the means."""
        gram = self.gram.to(torch.float64, copy=True).addr_(self.mean, self.mean, alpha=-1)
        if self.cross is None or self.output is None:
            return _Part(gram, self.mean)
        return _Part(gram, self.mean, self.cross - torch.outer(self.output, self.mean), self.output)


def _part(moments: Moments, group: int, module: nn.Module) -> _Part:
    gram, mean = moments.gram[group], moments.mean[group].double()
    if moments.cross is None or moments.output is None:
        return _Part(gram, mean)
    bias = _bias(module, len(moments.gram))[group]
    output = moments.output[group].double() - bias
    return _Part(gram, mean, moments.cross[group].double() - torch.outer(bias, mean), output)


def _solve_group(
    weight: Tensor,
    part: _Part,
    drop: int,
    importance: Tensor | None,
    config: PruningConfig,
    note: Callable[[str], None],
    factored: Callable[[_Part], InverseFactor],
) -> Tensor:
    choose = config.parsed_pattern.chooser(config.resolved_scope == "row")
    if config.method == "wanda":
        norm = part.gram.diagonal().clamp_min(0).sqrt().to(weight.dtype)
        return weight * choose(scores.wanda(weight, norm), drop)
    if (
        config.resolved_bias_repair
    ):  # the bias repairs the mean, so fit the weights to the centred moments
        part = part.centred()
    relative = _relative(importance, config)
    if config.method == "sparsegpt" and part.cross is None:
        upper, share = factored(part)
        new = _sparsegpt(weight, upper, drop, choose, relative, config)
    else:
        new, share = _by_target(weight, part, drop, choose, relative, config)
    if share > config.solver.damping:
        note(f"the Gram matrix is singular and was damped by {share:g} of its mean diagonal")
    return new


def _by_target(
    weight: Tensor,
    part: _Part,
    drop: int,
    choose: Chooser,
    importance: Tensor | None,
    config: PruningConfig,
) -> tuple[Tensor, float]:
    """The dense weight that fits the target outputs best, pruned; and the damping."""
    matrix, factor, share = damped(part.gram, config.solver.damping)
    target = weight
    if part.cross is not None:
        target = ridge_target(weight, part.cross, part.gram, matrix, factor)
    if config.method == "sparsegpt":
        upper = inverse_upper(factor)
        return _sparsegpt(target, upper, drop, choose, importance, config), share
    hessian = matrix.to(target.dtype)
    keep = alps_mask(
        target, hessian, drop, choose, iterations=config.alps.iterations, output_weight=importance
    )
    return least_squares(target, hessian, keep), share


def _sparsegpt(
    target: Tensor,
    upper: Tensor,
    drop: int,
    choose: Chooser,
    importance: Tensor | None,
    config: PruningConfig,
) -> Tensor:
    pattern = config.parsed_pattern
    block = -(-config.sparsegpt.block_size // pattern.step) * pattern.step
    return sparsegpt(
        target, upper, drop, choose, block=block, group=pattern.group, output_weight=importance
    )


def _inverse_factor(
    moments: Moments, group: int, config: PruningConfig, memoize: Memoize, part: _Part
) -> InverseFactor:
    def make() -> InverseFactor:
        return damped_inverse_upper(part.gram, config.solver.damping)

    key = ("upper", id(moments.gram), group, config.solver.damping, config.resolved_bias_repair)
    return memoize(key, make)


def _relative(importance: Tensor | None, config: PruningConfig) -> Tensor | None:
    if importance is None or not config.solver.output_importance:
        return None
    mean = importance.mean().clamp_min(torch.finfo(torch.float32).tiny)
    return (importance / mean).pow(config.solver.output_importance)


def _repair_bias(module: nn.Module, moments: Moments, dense: Tensor, new: Tensor) -> None:
    """Set the bias so that the mean output equals the dense layer's."""
    mean = moments.mean.double()[:, :, None]
    if moments.output is not None:
        target = moments.output.double()[:, :, None]
    else:
        target = dense.double() @ mean + _bias(module, len(dense))[:, :, None]
    repaired = target - new.double() @ mean
    bias = module.bias
    assert isinstance(bias, Tensor)
    bias.detach().copy_(repaired.flatten())


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), Tensor)


def _bias(module: nn.Module, groups: int) -> Tensor:
    """The bias as groups x outputs, float64; zeros where there is none."""
    if not _has_bias(module):
        return grouped_weight(module).new_zeros(groups, 1, dtype=torch.float64)
    bias = module.bias
    assert isinstance(bias, Tensor)
    return bias.detach().double().view(groups, -1)


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
        gram, factor, _ = damped(moments.gram[group], config.solver.damping)
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
    choose = pattern.chooser(config.resolved_scope == "row")
    drop = round(level * weight.numel())
    if score is not None:
        return weight * choose(score, drop)
    assert upper is not None
    block = -(-config.sparsegpt.block_size // pattern.step) * pattern.step
    return sparsegpt(weight, upper, drop, choose, block=block)
