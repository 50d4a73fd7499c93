"""``prune``: set the least important weights of a model to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration, as_calibration
from hfcompress.calibration.moments import weight_of
from hfcompress.errors import CalibrationError, ModelError, TargetError
from hfcompress.models.matrices import weight_matrix
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.inputs import projections_called, unknown_inputs
from hfcompress.pruning.masks import Cut, count_zeros, cut_magnitudes_, is_finite, magnitude_cut
from hfcompress.pruning.oneshot import OneShot
from hfcompress.pruning.targets import EXCLUDED, UNKNOWN, Targets, find_targets
from hfcompress.tasks.loaders import Loader
from hfcompress.utils import FormerPlain

NOTED_SHARE = 0.25
"""Matrices that stay dense by default are noted from this share of the weights on."""


@dataclass(frozen=True)
class LayerReport:
    """How one layer was pruned.

    Attributes:
        name: the module's name in the model.
        weights: number of weights (the bias is not counted).
        zeros: weights that are zero after pruning.
        requested: number of zeros asked for.
    """

    name: str
    weights: int
    zeros: int
    requested: int

    @property
    def sparsity(self) -> float:
        """Share of the layer's weights that are zero."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class PruneReport(FormerPlain):
    """What `prune` did.

    Attributes:
        requested: sparsity asked for, of the targets.
        layers: one record for each pruned module, in model order.
        notes: what the caller should know, one sentence each.
        overall: share of zeros in all parameters of two or more dimensions, embeddings and head
            included.
        untouched: weight matrices that stay dense by default, by ``exclude`` or because calibration
            cannot see their inputs -> why.
    """

    requested: float
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()
    overall: float = 0.0
    untouched: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        left = f"; {len(self.notes)} notes" if self.notes else ""
        return (
            f"PruneReport({self.zeros:,} of {self.weights:,} weights in {len(self.layers)} layers "
            f"are zero ({self.actual:.1%}), {self.overall:.1%} of the model{left})"
        )

    @property
    def weights(self) -> int:
        """Number of weights in the targets."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Number of zeros in the targets' weights."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def actual(self) -> float:
        """Share of the targets' weights that are zero."""
        return self.zeros / self.weights

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        return {
            "requested": self.requested,
            "actual": self.actual,
            "overall": self.overall,
            "weights": self.weights,
            "zeros": self.zeros,
            "layers": [{**asdict(layer), "sparsity": layer.sparsity} for layer in self.layers],
            "notes": list(self.notes),
            "untouched": dict(self.untouched),
        }


def prune(
    model: nn.Module,
    config: PruningConfig,
    calibration: Calibration | Loader | None = None,
) -> PruneReport:
    """Set the least important weights of a model to zero, in place.

    Args:
        model: any module; the targets' weights (and, with bias repair, biases) are changed in
            place. An error leaves the model as it was.
        config: what to prune, by which method, how much.
        calibration: examples for the methods that need them: a `Calibration`, or any loader (a
            DataLoader of tuples, a dataset, dicts of tensors ...).

    Returns:
        requested and actual sparsity, and a record for each layer. The number of zeros is
        ``round(sparsity * weights)``, in each layer or (scope global, or an allocation) in all;
        weights that are zero already count first. An N:M pattern fixes the number, and blocks
        come as near as whole blocks can. ``notes`` name weight matrices that stay dense.

    Raises:
        TargetError: a pattern that matches nothing, nothing to prune, or a layer too small for
            the N:M or block pattern.
        ModelError: a weight that is NaN or infinite, or computed from other tensors (a mask of
            ``torch.nn.utils.prune``, a parametrization); the layer is named.
        CalibrationError: calibration data that are missing, too few, without labels where the
            method needs them, or that give NaN activations.
    """
    found = find_targets(model, config.targets, config.exclude)
    calibration = _calibration(model, config, calibration)
    reasons = unknown_inputs(model, found.modules, config, calibration)
    modules = {name: part for name, part in found.modules.items() if name not in reasons}
    notes = [f"{name} stays dense: {reason}" for name, reason in reasons.items()]
    if not modules:
        raise TargetError(f"nothing is left to prune: {'; '.join(notes)}")
    _check_pattern(modules, config)
    if _is_plain_magnitude(modules, config):
        layers = _by_magnitude(modules, config)
    else:
        layers, more = _by_scores(model, modules, config, calibration)
        notes = [*more, *notes]
    if config.targets is None:
        notes += _left_dense(found)
    untouched = found.untouched | reasons
    overall = _overall(model, modules, layers)
    return PruneReport(config.resolved_sparsity, layers, tuple(notes), overall, untouched)


def _by_scores(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    config: PruningConfig,
    calibration: Calibration | None,
) -> tuple[tuple[LayerReport, ...], tuple[str, ...]]:
    """All methods but plain magnitude; the records of the layers, and notes."""
    weights = {name: dense_weight(name, module) for name, module in modules.items()}
    with _restored_on_error(modules), projections_called(model, modules):
        requested, notes = OneShot(model, modules, config, calibration).run()
    layers = (
        LayerReport(name, weight.numel(), count_zeros(weight), requested[name])
        for name, weight in weights.items()
    )
    return tuple(layers), notes


@contextmanager
def _restored_on_error(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put weights and biases back, bit for bit, if the block raises."""
    parameters = [p for module in modules.values() for p in module.parameters(recurse=False)]
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, before in zip(parameters, saved, strict=True):
                parameter.copy_(before)
        raise


def _left_dense(found: Targets) -> Iterator[str]:
    """Notes that name matrices left dense by default, if they are unusual or a large share."""
    unknown = [name for name, reason in found.untouched.items() if reason == UNKNOWN]
    if unknown:
        yield f"{_listed(unknown)} stays dense: {UNKNOWN}"
    sizes = {name: weight_of(module).numel() for name, module in found.matrices.items()}
    known = [name for name, why in found.untouched.items() if why not in (UNKNOWN, EXCLUDED)]
    share = sum(sizes[name] for name in known) / sum(sizes.values())
    if share > NOTED_SHARE:
        yield (
            f"{_listed(known)} stays dense, {share:.0%} of the weights in matrices: by default "
            f"embeddings, pooler and head are not pruned; name it in targets to prune it"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _overall(
    model: nn.Module, modules: Mapping[str, nn.Module], layers: Sequence[LayerReport]
) -> float:
    """Share of zeros in all parameters of two or more dimensions."""
    counted = {id(weight_of(module)) for module in modules.values()}
    others = [p.detach() for p in model.parameters() if p.dim() > 1 and id(p) not in counted]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        zeros = sum(layer.zeros for layer in layers) + sum(pool.map(count_zeros, others))
    total = sum(layer.weights for layer in layers) + sum(other.numel() for other in others)
    return zeros / total


def dense_weight(name: str, module: nn.Module) -> Tensor:
    """A module's weight, checked to be finite.

    Raises:
        ModelError: a weight that is NaN or infinite.
    """
    weight = weight_of(module)
    if not is_finite(weight):
        raise ModelError(f"{name}.weight contains NaN or infinity; load an intact checkpoint")
    return weight.detach()


def _is_plain_magnitude(modules: Mapping[str, nn.Module], config: PruningConfig) -> bool:
    weights = [weight_of(module) for module in modules.values()]
    return (
        len({weight.dtype for weight in weights}) == 1
        and all(weight.is_contiguous() for weight in weights)
        and config.method == "magnitude"
        and config.pattern == "unstructured"
        and config.resolved_scope in ("layer", "global")
        and config.resolved_sparsity > 0
        and not config.needs_calibration
    )


def _by_magnitude(
    modules: Mapping[str, nn.Module], config: PruningConfig
) -> tuple[LayerReport, ...]:
    """The fast path: no scores, no masks; two passes over the weights.

    All cuts are chosen before the first weight changes: a NaN leaves the model unchanged.
    """
    weights = {name: weight_of(module).detach() for name, module in modules.items()}
    together = config.resolved_scope == "global"
    portions = [list(weights)] if together else [[name] for name in weights]

    def choose(names: list[str]) -> Cut | None:
        drop = round(config.resolved_sparsity * sum(weights[name].numel() for name in names))
        try:
            return magnitude_cut([weights[name] for name in names], drop) if drop else None
        except ValueError:
            for name in names:
                dense_weight(name, modules[name])
            raise

    def apply(names: list[str], cut: Cut | None) -> list[LayerReport]:
        part = [weights[name] for name in names]
        zeros = (
            [count_zeros(weight) for weight in part] if cut is None else cut_magnitudes_(part, cut)
        )
        return [
            LayerReport(
                name,
                weight.numel(),
                zero,
                zero if together else round(config.resolved_sparsity * weight.numel()),
            )
            for name, weight, zero in zip(names, part, zeros, strict=True)
        ]

    # numpy releases the GIL in its loops, so layers run in parallel.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        cuts = list(pool.map(choose, portions))
        found = list(pool.map(apply, portions, cuts))
    return tuple(record for records in found for record in records)


def _check_pattern(modules: Mapping[str, nn.Module], config: PruningConfig) -> None:
    for name, module in modules.items():
        outputs, inputs = weight_matrix(module).shape
        if not config.parsed_pattern.fits(outputs, inputs):
            raise TargetError(
                f"{name} has {outputs} outputs and {inputs} inputs and cannot hold the pattern "
                f"{config.pattern}; exclude it or choose a smaller pattern"
            )


def _calibration(
    model: nn.Module, config: PruningConfig, calibration: Calibration | Loader | None
) -> Calibration | None:
    if not config.needs_calibration:
        return None
    if config.augmented_rows:
        raise CalibrationError(
            "augmented_rows is made by a recipe's prune step; to call prune, give Calibration "
            "the batches of augment_texts, too, and leave augmented_rows out"
        )
    if calibration is None:
        raise CalibrationError(
            f"method {config.method} with these options needs calibration data; "
            f"pass Calibration(batches) to prune"
        )
    return as_calibration(calibration, model).first(config.calibration_rows)
