"""``PruningCallback``: pruning during training, for any transformers ``Trainer``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hfcompress.errors import ConfigError, SourceError
from hfcompress.pruning.training_config import PruningTrainingConfig
from hfcompress.pruning.training_masks import Prune, TrainingMasks

STATE_FILE = "pruning_state.safetensors"
"""The file that holds masks and scores, in each checkpoint folder."""


class PruningCallback(TrainerCallback):
    """Prunes a model while a ``Trainer`` trains it::

        Trainer(..., callbacks=[PruningCallback(PruningTrainingConfig(sparsity=0.8))])

    Masks are chosen after the optimizer steps that the schedule names, and dropped weights are
    zero again after every optimizer step: weight decay, moments, gradient accumulation, mixed
    precision and gradient checkpointing do not bring them back. With several processes all hold
    the masks of the first. Masks and scores are saved in each checkpoint folder, and a resumed
    training goes on from them.

    Args:
        config: what to prune, and when.
        resume_from: the checkpoint folder of a resumed training. By default it is what
            ``args.resume_from_checkpoint`` names, or else the folder of the resumed step in
            ``args.output_dir``.
        prune: for method custom, ``prune(model, sparsity)``; called at each update.

    Attributes:
        masks: the `TrainingMasks`, from the start of training on.
    """

    def __init__(
        self,
        config: PruningTrainingConfig,
        resume_from: str | Path | None = None,
        prune: Prune | None = None,
    ) -> None:
        self.config = config
        self.resume_from = resume_from
        self.prune = prune
        self.masks: TrainingMasks | None = None

    @property
    def sparsity(self) -> float:
        """Share of the targets' weights that the masks drop now; 0 before training."""
        return 0.0 if self.masks is None else self.masks.sparsity

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """Choose the first masks, or take up those of a resumed checkpoint.

        Raises:
            ConfigError: a schedule or a training argument that does not go with pruning.
            TargetError: nothing to prune.
            SourceError: a resumed checkpoint without masks.
        """
        assert model is not None
        masks = TrainingMasks(model, self.config, state.max_steps, self.prune)
        _check_arguments(args, masks)
        if state.global_step == 0:
            masks.update(0)
        else:
            self._resume(args, state, masks)
        self.masks = masks

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Gradients are complete: score them, and clear those of dropped weights."""
        if self.masks is not None:
            self.masks.before_step()

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """The optimizer has moved all weights: zero the dropped ones."""
        if self.masks is not None:
            self.masks.after_step()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Choose the masks anew where the schedule says so, before logging and saving."""
        if self.masks is not None:
            self.masks.update(state.global_step)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Save masks and scores beside the checkpoint's weights."""
        folder = _checkpoint_folder(args, state)
        # A hyperparameter search saves elsewhere, and its trials are never resumed.
        if self.masks is None or not args.should_save or not folder.is_dir():
            return
        metadata = {"config": json.dumps(self.config.to_dict()), "step": str(state.global_step)}
        save_file(self.masks.state(), folder / STATE_FILE, metadata=metadata)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Say so when training ends without a single dropped weight."""
        expected = not self.config.may_be_dense
        if self.masks is not None and expected and self.masks.sparsity == 0:
            warnings.warn(
                f"training ended at step {state.global_step} with no weight pruned; "
                + ("raise 'regularization'" if self.config.method == "soft_movement"
                   else f"pruning starts at step {self.masks.schedule.start}"),
                stacklevel=2,
            )  # fmt: skip

    def _resume(self, args: TrainingArguments, state: TrainerState, masks: TrainingMasks) -> None:
        path = self._saved_masks(args, state)
        saved = json.loads(_metadata(path)["config"])
        if saved != self.config.to_dict():
            changed = [
                name for name, value in self.config.to_dict().items() if value != saved.get(name)
            ]
            raise ConfigError(
                f"{path} was written with another pruning config ({', '.join(changed)} differ); "
                "resume with the config that training started with"
            )
        masks.load(load_file(path))

    def _saved_masks(self, args: TrainingArguments, state: TrainerState) -> Path:
        """Return the file with the masks of the resumed step.

        Raises:
            SourceError: no such file, or one of another step only.
        """
        named = self.resume_from or args.resume_from_checkpoint
        known = isinstance(named, (str, Path)) and str(named).lower() != "true"
        folder = _checkpoint_folder(args, state)
        first = Path(str(named)) / STATE_FILE if known else folder / STATE_FILE
        # A folder that was named for an earlier resume holds the masks of an earlier step.
        paths = [path for path in (first, folder / STATE_FILE) if path.is_file()]
        if not paths:
            raise SourceError(
                f"training resumes at step {state.global_step}, and {first} with its masks is not "
                "there; give PruningCallback(resume_from=...) the folder that holds it"
            )
        steps = [_metadata(path).get("step", str(state.global_step)) for path in paths]
        if str(state.global_step) not in steps:
            raise SourceError(
                f"training resumes at step {state.global_step}, and {paths[0]} holds the masks of "
                f"step {steps[0]}; give PruningCallback(resume_from=...) the resumed checkpoint"
            )
        return paths[steps.index(str(state.global_step))]


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, str] = file.metadata()
    return found


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _check_arguments(args: TrainingArguments, masks: TrainingMasks) -> None:
    """Refuse training arguments under which masks would not hold."""
    if args.deepspeed or args.fsdp:
        raise ConfigError(
            "pruning in training needs whole weights in each process; leave deepspeed and fsdp "
            "out, and use plain data parallel training"
        )
    if args.load_best_model_at_end and masks.schedule.last_update > 0:
        raise ConfigError(
            "load_best_model_at_end may bring back weights from before the last pruning (step "
            f"{masks.schedule.last_update}); set it to False, or recover the pruned model in a "
            "second training with method 'keep_zeros'"
        )
    if masks.moves and args.fp16 and not args.max_grad_norm:
        raise ConfigError(
            "movement scores need unscaled gradients; with fp16, set max_grad_norm above 0 "
            "(clipping unscales them), or use bf16"
        )
