"""``TrainingMasks``: the masks of a model in training, without anything that trains it.

The weights themselves hold the zeros. No module is wrapped and no parametrization is added, so
names in the ``state_dict`` stay, and a checkpoint taken at any moment is an ordinary one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from hfcompress.errors import CalibrationError, ConfigError, TargetError
from hfcompress.models.matrices import inputs_first, weight_matrix
from hfcompress.pruning.prune import dense_weight
from hfcompress.pruning.scores import movement_update_, soft_movement_mask, soft_movement_update_
from hfcompress.pruning.targets import select_targets
from hfcompress.pruning.training_config import PruningTrainingConfig

Prune = Callable[[nn.Module, float], object]
"""``prune(model, sparsity)``: prune in place, by any method."""


class TrainingMasks:
    """Chooses masks by a schedule and holds them around each optimizer step.

    Call `update` when the step count is one of the schedule's, `before_step` when gradients are
    complete and `after_step` when the optimizer has moved the weights.

    Movement keeps the values of dropped weights aside (``latent``), because a weight whose score
    rises comes back with the value that it had: with the gradient of the masked weight, this is
    the straight-through estimator of 2005.07683 without a second copy of the model.

    Args:
        model: the model that trains; its weights change in place.
        config: what to prune.
        total_steps: optimizer steps of the whole training.
        prune: ``prune(model, sparsity)``, which sets weights of the model to zero and may change
            the others; needed by method custom, and by no other.

    Raises:
        TargetError: no module to prune, one that cannot hold an N:M pattern, or (keep_zeros) no
            zero in any of them.
        ConfigError: a schedule that ends after training does, or a function that is missing or
            would not be called.
        ModelError: a weight that is NaN or infinite.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PruningTrainingConfig,
        total_steps: int,
        prune: Prune | None = None,
    ) -> None:
        if (config.method == "custom") != (prune is not None):
            raise ConfigError(
                "method 'custom' needs a function that prunes, and no other method takes one; "
                f"the method is {config.method!r}, and the function {prune!r}"
            )
        self.config = config
        self.prune = prune
        self.model = model
        self.schedule = config.sparsity_schedule(total_steps)
        self.modules = select_targets(model, config.targets, config.exclude)
        self.weights = _weights(self.modules, config)
        self.kept = {
            name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()
        }
        self.scores: dict[str, Tensor] = {}
        self.latent: dict[str, Tensor] = {}
        if self.moves:
            self.scores = {
                name: torch.zeros_like(weight, dtype=torch.float32)
                for name, weight in self.weights.items()
            }
            self.latent = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @property
    def moves(self) -> bool:
        """Whether the method scores movement, and dropped weights may come back."""
        return self.config.method in ("movement", "soft_movement")

    @property
    def sparsity(self) -> float:
        """Share of the targets' weights that the masks drop."""
        total = sum(kept.numel() for kept in self.kept.values())
        return 1 - sum(int(kept.sum()) for kept in self.kept.values()) / total

    @torch.no_grad()
    def update(self, step: int) -> bool:
        """Choose the masks anew if the schedule says so, and zero what they drop.

        Args:
            step: optimizer steps done.

        Returns:
            whether the masks were chosen anew.

        Raises:
            CalibrationError: movement scores are due, and no gradient has been seen.
        """
        if not self.schedule.is_update(step):
            return False
        if self.prune is not None:
            self._prune_by(self.prune, self.schedule.sparsity(step))
        full = self._full_weights()
        self.kept = self._choose(step, full)
        _broadcast(self.kept)
        for name, weight in self.weights.items():
            if self.moves:
                self.latent[name] = full[name].clone()
                weight.copy_(full[name])
        self.after_step()
        return True

    @torch.no_grad()
    def before_step(self) -> None:
        """Score movement, then clear the gradients of dropped weights.

        Cleared gradients keep the optimizer's moments of dropped weights free of steps that
        will not be taken.
        """
        for name, weight in self.weights.items():
            if weight.grad is None:
                continue
            if self.moves:
                self._score(name, weight.grad)
            weight.grad.masked_fill_(~self.kept[name], 0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Zero the dropped weights, whatever moments and weight decay have made of them."""
        for name, weight in self.weights.items():
            weight.masked_fill_(~self.kept[name], 0)

    def state(self) -> dict[str, Tensor]:
        """All that is needed to go on from here, by flat names."""
        return {
            f"{part}.{name}": tensor.detach().contiguous()
            for part, tensors in self._parts().items()
            for name, tensor in tensors.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state` of an earlier training of the same model with the same config.

        Raises:
            TargetError: a state of other modules, or weights that are not zero where the state's
                masks drop them.
        """
        expected = self.state()
        if {name: value.shape for name, value in state.items()} != {
            name: value.shape for name, value in expected.items()
        }:
            raise TargetError("the saved masks belong to other modules; resume the same model")
        for part, tensors in self._parts().items():
            for name, tensor in tensors.items():
                tensors[name] = state[f"{part}.{name}"].to(tensor.device, copy=True)
        for name, weight in self.weights.items():
            if torch.count_nonzero(weight.detach().masked_fill(self.kept[name], 0)):
                raise TargetError(
                    f"{name}.weight is not zero where the saved masks drop it; model and masks "
                    "must come from the same checkpoint"
                )

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        return {"kept": self.kept, "scores": self.scores, "latent": self.latent}

    def _prune_by(self, prune: Prune, sparsity: float) -> None:
        training = self.model.training
        self.model.eval()
        with torch.enable_grad():  # the function decides whether it needs gradients
            prune(self.model, sparsity)
        self.model.train(training)
        _broadcast(self.weights)

    def _full_weights(self) -> dict[str, Tensor]:
        """The weights before masking: dropped ones with the value that is kept aside."""
        if not self.moves:
            return {name: weight.detach() for name, weight in self.weights.items()}
        return {
            name: torch.where(self.kept[name], weight.detach(), self.latent[name])
            for name, weight in self.weights.items()
        }

    def _score(self, name: str, gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():  # the loss scaler will skip this step
            return
        weight = torch.where(self.kept[name], self.weights[name].detach(), self.latent[name])
        if self.config.method == "movement":
            movement_update_(self.scores[name], weight, gradient)
            return
        soft_movement_update_(
            self.scores[name],
            weight,
            gradient,
            learning_rate=self.config.score_learning_rate,
            pull=self.config.regularization,
        )

    def _choose(self, step: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.config.method in ("keep_zeros", "custom"):
            return {name: weight != 0 for name, weight in weights.items()}
        if self.config.method == "soft_movement":
            threshold = self.config.threshold * self.schedule.progress(step)
            return {
                name: soft_movement_mask(scores, threshold) for name, scores in self.scores.items()
            }
        scores = self.scores if self.moves else {n: w.abs() for n, w in weights.items()}
        sparsity = self.schedule.sparsity(step)
        if self.moves and sparsity > 0 and not any(map(torch.count_nonzero, scores.values())):
            raise CalibrationError(
                f"movement prunes at step {step}, before any gradient of the targets was seen; "
                "start later ('start' or 'warmup'), and do not freeze the targets"
            )
        return _choose_by_scores(self.modules, scores, sparsity, self.config)


def _choose_by_scores(
    modules: Mapping[str, nn.Module],
    scores: Mapping[str, Tensor],
    sparsity: float,
    config: PruningTrainingConfig,
) -> dict[str, Tensor]:
    """Masks in the layout of the weights, for scores in that layout."""
    pattern = config.shape
    if pattern.group:
        # Rounded before the floor: half of 4 must be 2 whatever the last bit says.
        dropped = math.floor(round(pattern.group * sparsity, 6))
        pattern = replace(pattern, keep=pattern.group - dropped)
    matrices = {name: _as_matrix(modules[name], score) for name, score in scores.items()}
    if config.scope == "global":
        total = sum(matrix.numel() for matrix in matrices.values())
        masks = pattern.global_masks(list(matrices.values()), round(sparsity * total))
    else:
        choose = pattern.chooser()
        masks = [
            choose(matrix, pattern.dropped(matrix.shape[0], matrix.shape[1], sparsity))
            for matrix in matrices.values()
        ]
    return {
        name: _from_matrix(modules[name], mask, scores[name].shape)
        for name, mask in zip(matrices, masks, strict=True)
    }


def _as_matrix(module: nn.Module, scores: Tensor) -> Tensor:
    """Outputs x inputs, as `weight_matrix` has it."""
    if inputs_first(module):
        return scores.transpose(0, 1).contiguous().flatten(1)
    return scores.flatten(1)


def _from_matrix(module: nn.Module, mask: Tensor, shape: torch.Size) -> Tensor:
    if not inputs_first(module):
        return mask.reshape(shape).contiguous()
    return mask.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1).contiguous()


def _weights(
    modules: Mapping[str, nn.Module], config: PruningTrainingConfig
) -> dict[str, nn.Parameter]:
    weights = {}
    for name, module in modules.items():
        outputs, inputs = weight_matrix(module).shape
        if not config.shape.fits(outputs, inputs):
            raise TargetError(
                f"{name} has {outputs} outputs and {inputs} inputs, too few for pattern "
                f"{config.pattern!r}; exclude it, or ask for another pattern"
            )
        dense_weight(name, module)
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        weights[name] = weight
    dense = not any((weight == 0).any() for weight in weights.values())
    if config.method == "keep_zeros" and dense and not config.may_be_dense:
        raise TargetError(
            f"method 'keep_zeros' would prune nothing: no weight of the {len(weights)} targets is "
            "zero; prune the model first, or ask for another method"
        )
    return weights


def _broadcast(tensors: Mapping[str, Tensor]) -> None:
    """Give every process the first one's values; sums may differ between kinds of processors."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors.values():
            plain = tensor.detach()
            shared = plain.to(torch.uint8) if plain.dtype == torch.bool else plain
            torch.distributed.broadcast(shared, src=0)
            plain.copy_(shared)
