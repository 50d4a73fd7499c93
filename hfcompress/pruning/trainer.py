"""``PruningTrainer`` and ``PruningArguments``: pruning in training as one class."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from hfcompress.config import option, option_metadata
from hfcompress.errors import ConfigError
from hfcompress.pruning.callback import PruningCallback
from hfcompress.pruning.training_config import PruningTrainingConfig
from hfcompress.pruning.training_masks import Prune
from hfcompress.training.trainer import TermsTrainer, Trial

LossTerms = Callable[[nn.Module, Mapping[str, Any], Any], Mapping[str, Tensor]]
"""``terms(model, inputs, outputs)``: named scalars, each the mean over the batch."""

_PREFIX = "pruning_"


_last_checkpoint: Callable[[str], str | None] = get_last_checkpoint
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


class PruningTrainer(TermsTrainer):
    """A ``Trainer`` that prunes while it trains, and takes further losses.

    The loss is ``task_loss_weight`` times the one that ``Trainer`` computes (see `TermsTrainer`)
    plus the sum of the ``loss_terms``. With a weight of 0 the rows need no labels. The mean of
    each term since the last log, and the sparsity, are logged beside the loss. The options are read
    from ``args`` when a training starts.

    Args:
        args: `PruningArguments`.
        loss_terms: called as ``loss_terms(model, inputs, outputs)``, gives named scalars, each the
            mean over the rows of a batch; with a method ``part_counts(inputs)``, as `TeacherLoss`
            has, over what it counts.
        prune: for method custom, ``prune(model, sparsity)``.
        *others: those of ``Trainer``.
    """

    args: PruningArguments
    no_labels = "the rows have no labels; set task_loss_weight to 0 to train on the loss_terms only"

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
        _check_loss(args, loss_terms)
        super().__init__(model, args, *others, **kwargs)
        self.loss_terms = loss_terms
        self.pruning = PruningCallback(args.pruning_config(), prune=prune)
        self.add_callback(self.pruning)

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Trial = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As ``Trainer.train``; masks are resumed from the same folder."""
        before = self.pruning.resume_from
        folder: str | Path | bool | None = resume_from_checkpoint
        if folder is True:
            folder = _last_checkpoint(str(self.args.output_dir))
        if isinstance(folder, (str, os.PathLike)):
            self.pruning.resume_from = folder
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.pruning.resume_from = before

    def begin_training(self) -> None:
        """Read the options from ``args``."""
        _check_loss(self.args, self.loss_terms)
        self.pruning.config = self.args.pruning_config()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        """Return the weighted task loss plus the added terms."""
        parts: dict[str, Tensor] = {}
        weights = {"task_loss": self.args.task_loss_weight}
        if self.args.task_loss_weight:
            task, outputs = self.task_loss(model, inputs, num_items_in_batch)
            parts["task_loss"] = task
        else:  # the model's own loss is not asked for, so that there may be no labels
            outputs = model(**self.readable(inputs))
        if self.loss_terms is not None:
            terms = self.loss_terms(model, dict(inputs), outputs)
            if model.training:
                terms = self.in_update(terms, inputs, num_items_in_batch)
            parts |= terms
        if model.training:
            self.log_parts(parts, num_items_in_batch)
        loss = torch.zeros((), device=self.args.device)
        for name, part in parts.items():
            loss = loss + weights.get(name, 1.0) * part.to(loss.device)
        return (loss, outputs) if return_outputs else loss

    def part_counts(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what each part of the loss averages over in a batch, by the part's name."""
        known: Callable[..., dict[str, Tensor]] | None
        known = getattr(self.loss_terms, "part_counts", None)
        return super().part_counts(inputs) | ({} if known is None else known(inputs))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each loss term and the sparsity to a training log."""
        if "loss" in logs:
            logs["sparsity"] = self.pruning.sparsity
        super().log(logs, start_time)


def _check_loss(args: PruningArguments, loss_terms: LossTerms | None) -> None:
    if loss_terms is None and not args.task_loss_weight:
        raise ConfigError("task_loss_weight 0 leaves no loss; give PruningTrainer loss_terms")
