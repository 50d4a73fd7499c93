"""Every one-shot method beyond plain magnitude: scores, allocation, masks, updates, in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration, fingerprint
from hfcompress.calibration.importance import Importance, importance
from hfcompress.calibration.moments import Moments, as_matrix, grouped_weight
from hfcompress.models.matrices import weight_matrix, write_matrix
from hfcompress.pruning import allocation, scores
from hfcompress.pruning.config import MOMENT_METHODS, RECONSTRUCTING, PruningConfig
from hfcompress.pruning.layer_solver import (
    LEVELS,
    InverseFactor,
    Memoize,
    Task,
    layer_errors,
    solve_layer,
    surgeon_scores,
)
from hfcompress.pruning.scores import BlockFisher
from hfcompress.pruning.sequential import layer_by_layer

_FISHER_BYTES = 1 << 30
"""Memory for the inverse block Fisher; layers are handled in as many passes as that takes."""


class OneShot:
    """One call of `prune`: the parts share model, layers, config and calibration.

    Args:
        model: pruned in place.
        modules: the targets by name.
        config: what to do.
        calibration: examples; None where the config needs none.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        config: PruningConfig,
        calibration: Calibration | None,
    ) -> None:
        self.model, self.modules, self.config = model, modules, config
        self._calibration = calibration
        self._notes: list[str] = []
        self._pattern = config.parsed_pattern
        self._sizes = {name: weight_matrix(module).numel() for name, module in modules.items()}

    @property
    def calibration(self) -> Calibration:
        """The examples; asked for only where the config needs them."""
        assert self._calibration is not None
        return self._calibration

    @torch.no_grad()
    def run(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """Prune; returns what was asked of each layer, and notes."""
        if self.config.method in MOMENT_METHODS and (
            self.config.method != "wanda" or self.config.resolved_statistics == "sequential"
        ):
            counts = self._counts(self.config.resolved_sparsity)
            self._by_moments(self._tasks(counts))
        elif self.config.resolved_bias_repair:
            counts = self._with_bias_repair()
        else:
            counts = self._by_rounds()
        return counts, tuple(self._notes)

    def _tasks(self, counts: Mapping[str, int]) -> dict[str, Task]:
        """Each layer's task, with the importance of its outputs."""
        if not self.config.solver.output_importance:
            return {name: Task(name, drop) for name, drop in counts.items()}
        found = {name: part.outputs for name, part in self._importance().items()}
        return {name: Task(name, drop, importance=found.get(name)) for name, drop in counts.items()}

    def _by_rounds(self) -> dict[str, int]:
        rounds = self.config.recomputations
        for number in range(1, rounds + 1):
            # Geometric steps: each round drops the same share of what is left.
            sparsity = 1 - (1 - self.config.resolved_sparsity) ** (number / rounds)
            sparsity = self.config.resolved_sparsity if number == rounds else sparsity
            if self.config.method == "obert":
                counts = self._by_block_fisher(sparsity)
            else:
                counts = self._by_scores(sparsity)
        return counts

    def _with_bias_repair(self) -> dict[str, int]:
        """Choose the new weights, restore the dense ones, then write layer by layer with biases."""
        dense = {name: weight_matrix(module).clone() for name, module in self.modules.items()}
        counts = self._by_rounds()
        tasks = {}
        for name, module in self.modules.items():
            tasks[name] = Task(name, counts[name], weight_matrix(module).clone())
            write_matrix(module, dense[name])
        self._by_moments(tasks)
        return counts

    def _by_moments(self, tasks: Mapping[str, Task]) -> None:
        """Solve each layer's task with the statistics that the config names."""
        config = self.config
        with closing(self._moments()) as steps:  # an error below ends evaluation mode at once
            for step in steps:
                sequential = config.resolved_statistics == "sequential"
                memoize = _group_cache() if sequential else self.calibration.kept
                for name, moments in step.items():
                    module, task = self.modules[name], tasks[name]
                    solve_layer(module, moments, task, config, self._notes.append, memoize)

    def _moments(self) -> Generator[dict[str, Moments]]:
        """Moments of groups of layers, each from the model as it is when the group is asked for."""
        if self.config.resolved_statistics == "dense":
            yield self.calibration.moments(self.model, self.modules)
            return
        yield from layer_by_layer(
            self.model,
            self.modules,
            self.calibration,
            dense_outputs=self.config.resolved_reference == "outputs",
            memory=self.config.activation_memory << 20,
            token_weights=self._token_weights(),
        )

    def _by_scores(self, sparsity: float) -> dict[str, int]:
        found = self._scores()
        if self.config.resolved_scope == "global":
            total = round(sparsity * sum(self._sizes.values()))
            masks = dict(
                zip(found, self._pattern.global_masks(list(found.values()), total), strict=True)
            )
            counts = {name: int((~mask).sum()) for name, mask in masks.items()}
        else:
            counts = self._counts(sparsity)
            choose = self._pattern.chooser(self.config.resolved_scope == "row")
            masks = {name: choose(score, counts[name]) for name, score in found.items()}
        for name, module in self.modules.items():
            write_matrix(module, weight_matrix(module) * masks[name])
        return counts

    def _scores(self) -> dict[str, Tensor]:
        """Scores of each layer, outputs x inputs, by a method that has them beforehand."""
        method, modules = self.config.method, self.modules
        weights = {name: weight_matrix(module) for name, module in modules.items()}
        if method == "wanda":
            return self._wanda_scores()
        if method in ("taylor", "fisher"):
            gradients = self.calibration.gradients(self.model, modules, squared=method == "fisher")
            rule = scores.fisher if method == "fisher" else scores.taylor
            return {
                name: rule(weight, as_matrix(modules[name], gradients[name]))
                for name, weight in weights.items()
            }
        if method == "random":
            generator = torch.Generator().manual_seed(self.config.seed)
            return {name: scores.random(weight, generator) for name, weight in weights.items()}
        rule_of_one = scores.lamp if method == "lamp" else scores.magnitude
        return {name: rule_of_one(weight) for name, weight in weights.items()}

    def _wanda_scores(self) -> dict[str, Tensor]:
        squares = self.calibration.squared_norms(self.model, self.modules)
        return {
            name: scores.wanda(grouped_weight(module), squares[name].sqrt()[:, None]).flatten(0, 1)
            for name, module in self.modules.items()
        }

    def _counts(self, sparsity: float) -> dict[str, int]:
        """Weights to drop in each layer."""
        config, total = self.config, round(sparsity * sum(self._sizes.values()))
        if config.resolved_scope == "global":
            return self._global_counts(total)
        if config.resolved_allocation == "owl":
            outliers = {
                name: allocation.outlier_share(score, config.owl.multiple)
                for name, score in self._wanda_scores().items()
            }
            return allocation.owl(outliers, self._sizes, total, config.owl.spread)
        uniform = {
            name: self._pattern.dropped(*_shape(module), sparsity)
            for name, module in self.modules.items()
        }
        return uniform if config.resolved_allocation == "uniform" else self._optimal(uniform, total)

    def _optimal(self, uniform: Mapping[str, int], total: int) -> dict[str, int]:
        """Counts of least estimated error; layers without an estimate keep the uniform count."""
        levels, errors = allocation.finer(
            LEVELS, self._error_table(), self.config.optimal.max_sparsity
        )
        fixed = {name: drop for name, drop in uniform.items() if name not in errors}
        sizes = {name: size for name, size in self._sizes.items() if name in errors}
        free = allocation.optimal(errors, levels, sizes, total - sum(fixed.values()))
        return {name: fixed[name] if name in fixed else free[name] for name in uniform}

    def _importance(self) -> dict[str, Importance]:
        """The importance of the layers that reach the model's output; a note names the others."""
        found = importance(
            self.model, self.modules, self.calibration, self.config.seed, skip_unreached=True
        )
        others = [name for name in self.modules if name not in found]
        note = (
            f"{', '.join(others)}: not connected to the model's output, so pruned to the uniform "
            f"sparsity with all outputs and tokens weighted alike"
        )
        if others and note not in self._notes:
            self._notes.append(note)
        return found

    def _token_weights(self) -> dict[str, list[Tensor]]:
        share = self.config.resolved_token_importance
        found = self._importance() if share else {}
        return {
            name: [1 - share + share * tokens for tokens in part.tokens]
            for name, part in found.items()
        }

    def _global_counts(self, total: int) -> dict[str, int]:
        """Counts by one threshold over all layers' scores, for methods that choose later."""
        found = self._scores() if self.config.method == "wanda" else self._surgeon_scores()
        masks = self._pattern.global_masks(list(found.values()), total)
        return {name: int((~mask).sum()) for name, mask in zip(found, masks, strict=True)}

    def _surgeon_scores(self) -> dict[str, Tensor]:
        moments = self.calibration.moments(self.model, self.modules)
        return {
            name: surgeon_scores(module, moments[name], self.config.solver.damping)
            for name, module in self.modules.items()
        }

    def _error_table(self) -> dict[str, list[float]]:
        config, modules = self.config, self.modules
        key = (
            config.method,
            config.pattern,
            config.resolved_scope,
            config.solver.damping,
            config.sparsegpt.block_size,
            config.seed,
        )

        moved = self._importance()

        def collect() -> dict[str, list[float]]:
            moments = self.calibration.moments(self.model, modules)
            masking = {} if config.method in RECONSTRUCTING else self._scores()
            return {
                name: layer_errors(
                    module, moments[name], moved[name].outputs, masking.get(name), config
                )
                for name, module in modules.items()
                if name in moved
            }

        return self.calibration.kept(("errors", key, fingerprint(self.model), *modules), collect)

    def _by_block_fisher(self, sparsity: float) -> dict[str, int]:
        counts = None if self.config.resolved_scope == "global" else self._counts(sparsity)
        portions = fisher_portions(self._sizes, self.config.obert.block)
        if counts is None:
            counts = self._global_fisher_counts(portions, sparsity)
        choose = self._pattern.chooser(self.config.resolved_scope == "row")
        for portion in portions:
            for name, fisher in self._fishers(portion).items():
                module = self.modules[name]
                weight = weight_matrix(module)
                keep = choose(scores.surgeon(weight, fisher.diagonal(weight.shape)), counts[name])
                write_matrix(module, fisher.prune(weight, keep))
        return counts

    def _global_fisher_counts(
        self, portions: Sequence[Sequence[str]], sparsity: float
    ) -> dict[str, int]:
        found: dict[str, Tensor] = {}
        for portion in portions:
            for name, fisher in self._fishers(portion).items():
                weight = weight_matrix(self.modules[name])
                found[name] = scores.surgeon(weight, fisher.diagonal(weight.shape))
        total = round(sparsity * sum(self._sizes.values()))
        masks = self._pattern.global_masks(list(found.values()), total)
        return {name: int((~mask).sum()) for name, mask in zip(found, masks, strict=True)}

    def _fishers(self, names: Sequence[str]) -> dict[str, BlockFisher]:
        """The inverse block Fisher of some layers, from one pass over the rows."""
        config, modules = self.config, {name: self.modules[name] for name in names}
        fishers = {
            name: BlockFisher(
                self._sizes[name],
                config.obert.block,
                config.obert.damping,
                self.calibration.rows,
            )
            for name in names
        }

        def add(gradients: dict[str, Tensor]) -> None:
            for name, gradient in gradients.items():
                fishers[name].add(as_matrix(modules[name], gradient))

        self.calibration.each_gradient(self.model, modules, add)
        return fishers


def _group_cache() -> Memoize:
    """A cache for the layers of one group, which read the same input."""
    made: dict[tuple[object, ...], InverseFactor] = {}

    def memoize(key: tuple[object, ...], make: Callable[[], InverseFactor]) -> InverseFactor:
        if key not in made:
            made[key] = make()
        return made[key]

    return memoize


def _shape(module: nn.Module) -> tuple[int, int]:
    outputs, inputs = weight_matrix(module).shape
    return outputs, inputs


def fisher_portions(sizes: Mapping[str, int], block: int) -> list[list[str]]:
    """Layers in portions whose inverse block Fishers fit into memory together."""
    portions: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        need = size * block * 4
        if portions[-1] and used + need > _FISHER_BYTES:
            portions.append([])
            used = 0
        portions[-1].append(name)
        used += need
    return portions
