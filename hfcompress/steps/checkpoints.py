"""Checkpoints of a training: written whole, and which of them is whole after a run was killed.

::

    checkpoint-120/
        ...             as the Trainer writes it
        loss.json       the sum of the losses of its updates
        digests.json    of each file, written last
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from hfcompress.errors import first_line
from hfcompress.utils import Progress, atomic_write, damaged_files, write_digests

LOSS = "loss.json"


def save_whole(trainer: Trainer, loss: float, progress: Progress) -> None:
    """Let a Trainer mark its checkpoints as whole, and remove the one before only then.

    A checkpoint that cannot be written costs what it would have kept, not the training.

    Args:
        trainer: whose ``save_total_limit`` is None, so that it removes none itself.
        loss: the sum of the losses before the updates that it will do.
        progress: receives a note for each that cannot be written.
    """
    save: Callable[..., None] = trainer._save_checkpoint

    def save_checkpoint(model: object, trial: object) -> None:
        folder = Path(str(trainer.args.output_dir))
        checkpoint = folder / f"checkpoint-{trainer.state.global_step}"
        try:
            save(model, trial)
            atomic_write(checkpoint / LOSS, json.dumps(loss + trainer._total_loss_scalar))
            write_digests(checkpoint)
        except Exception as error:  # torch, safetensors and the system each have their own
            shutil.rmtree(checkpoint, ignore_errors=True)
            progress.note(f"{checkpoint} cannot be written ({first_line(error)}); training goes on")
            return
        for former in folder.glob("checkpoint-*"):
            if former != checkpoint:
                shutil.rmtree(former, ignore_errors=True)

    vars(trainer)["_save_checkpoint"] = save_checkpoint


def kept_loss(checkpoint: str | None) -> float:
    """The sum of the losses of the updates before a checkpoint."""
    path = None if checkpoint is None else Path(checkpoint) / LOSS
    return 0.0 if path is None else float(json.loads(path.read_text(encoding="utf-8")))


def last_checkpoint(folder: Path, progress: Progress) -> str | None:
    """The newest whole checkpoint of a folder; those that are not are renamed.

    Args:
        folder: the Trainer's output folder.
        progress: receives a note for each that is not whole.
    """
    while folder.is_dir():
        newest: str | None = get_last_checkpoint(str(folder))  # type: ignore[no-untyped-call]
        problem = None if newest is None else _problem(Path(newest))
        if newest is None or problem is None:
            return newest
        path = Path(newest)
        aside = path.with_name(f"broken-{path.name}")
        progress.note(
            f"{path.name} of an interrupted training cannot be used ({problem}); training goes on "
            f"from the one before, or from the start"
        )
        try:
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        except OSError:  # a folder that is only read
            return None
    return None


def _problem(checkpoint: Path) -> str | None:
    """Why training cannot go on from a checkpoint; None where it can."""
    damaged = damaged_files(checkpoint)
    if damaged is None or not (checkpoint / LOSS).is_file():
        return "it was not written to its end"
    return f"{', '.join(damaged)} differ from what was written" if damaged else None
