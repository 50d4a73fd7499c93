"""``PruningTrainer`` and ``PruningArguments``: pruning in training as one class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from hfcompress.config import option, option_metadata
from hfcompress.errors import ConfigError
from hfcompress.pruning.callback import PruningCallback
from hfcompress.pruning.training_config import PruningTrainingConfig
from hfcompress.pruning.training_masks import Prune

LossTerms = Callable[[nn.Module, Mapping[str, Any], Any], Mapping[str, Tensor]]
"""``terms(model, inputs, outputs)``: named scalars, each the mean over the batch."""

_PREFIX = "pruning_"


_option = partial(option, PruningTrainingConfig)
_help = partial(option_metadata, PruningTrainingConfig)


@dataclass
class PruningArguments(TrainingArguments):
    """Training arguments with the fields of `PruningTrainingConfig`, each after ``pruning_``.

    Raises:
        ConfigError: a value out of range, or a combination that would have no effect.
    """

    pruning_method: str = _option("method")
    pruning_sparsity: float | None = _option("sparsity")
    pruning_pattern: str = _option("pattern")
    pruning_scope: str = _option("scope")
    pruning_schedule: str = _option("schedule")
    pruning_initial_sparsity: float = _option("initial_sparsity")
    pruning_warmup: float = _option("warmup")
    pruning_cooldown: float = _option("cooldown")
    pruning_start: int | None = _option("start")
    pruning_end: int | None = _option("end")
    pruning_frequency: int = _option("frequency")
    pruning_threshold: float = _option("threshold")
    pruning_regularization: float = _option("regularization")
    pruning_score_learning_rate: float = _option("score_learning_rate")
    pruning_may_be_dense: bool = _option("may_be_dense")
    pruning_targets: list[str] | None = field(default=None, metadata=_help("targets"))
    pruning_exclude: list[str] | None = field(default=None, metadata=_help("exclude"))
    task_loss_weight: float = field(
        default=1.0, metadata={"help": "weight of the model's own loss beside added loss terms"}
    )

    def __post_init__(self) -> None:
        """Check the fields, at once and not when training starts."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.task_loss_weight < 0:
            raise ConfigError(f"task_loss_weight must be 0 or more, not {self.task_loss_weight}")
        self.pruning_config()

    def pruning_config(self) -> PruningTrainingConfig:
        """The pruning fields as a config."""
        names = [item.name for item in fields(self) if item.name.startswith(_PREFIX)]
        values = {name.removeprefix(_PREFIX): getattr(self, name) for name in names}
        return PruningTrainingConfig.from_dict(values, "PruningArguments")


class PruningTrainer(Trainer):
    """A ``Trainer`` that prunes while it trains, and takes further losses.

    The loss is ``task_loss_weight`` times the model's own plus the sum of the ``loss_terms``.
    With a weight of 0 the rows need no labels. The mean of each term since the last log, and the
    sparsity, are logged beside the loss.

    Args:
        args: `PruningArguments`.
        loss_terms: called as ``loss_terms(model, inputs, outputs)``, gives named scalars.
        prune: for method custom, ``prune(model, sparsity)``.
        *others: those of ``Trainer``.
    """

    args: PruningArguments

    def __init__(
        self,
        model: nn.Module | None = None,
        args: PruningArguments | None = None,
        *others: Any,
        loss_terms: LossTerms | None = None,
        prune: Prune | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, PruningArguments):
            raise ConfigError(f"PruningTrainer needs PruningArguments, not {type(args).__name__}")
        if loss_terms is None and not args.task_loss_weight:
            raise ConfigError("task_loss_weight 0 leaves no loss; give PruningTrainer loss_terms")
        super().__init__(model, args, *others, **kwargs)
        self.loss_terms = loss_terms
        self.pruning = PruningCallback(args.pruning_config(), prune=prune)
        self.add_callback(self.pruning)
        self._buffer: dict[str, list[Tensor]] = defaultdict(list)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As ``Trainer.train``; masks are resumed from the same folder."""
        if isinstance(resume_from_checkpoint, str):
            self.pruning.resume_from = resume_from_checkpoint
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted task loss plus the added terms."""
        parts: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.args.device)
        if self.args.task_loss_weight:
            task, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
            parts["task_loss"] = task
            loss = self.args.task_loss_weight * task
        else:  # the model's own loss is not asked for, so that there may be no labels
            outputs = model(**inputs)
        if self.loss_terms is not None:
            terms = self.loss_terms(model, inputs, outputs)
            parts.update(terms)
            scale = self._scale(num_items_in_batch)
            loss = (
                loss + scale * torch.stack([term.to(loss.device) for term in terms.values()]).sum()
            )
        if model.training:
            for name, part in parts.items():
                self._buffer[name].append(part.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each buffered loss term and the sparsity to a training log."""
        if "loss" in logs:
            for name, values in self._buffer.items():
                logs[name] = self._mean(torch.stack(values).mean())
            self._buffer.clear()
            logs["sparsity"] = self.pruning.sparsity
        super().log(logs, *args, **kwargs)

    def _scale(self, num_items_in_batch: Tensor | int | None) -> float:
        """What an added term needs so that accumulated gradients are those of the mean.

        The Trainer divides the loss by the accumulation steps only where the task loss is not
        already normalized over all of them.
        """
        normalized = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return 1 / self.current_gradient_accumulation_steps if normalized else 1.0

    def _mean(self, value: Tensor) -> float:
        """The mean over processes."""
        return float(self.accelerator.gather(value.float().reshape(1)).mean())
