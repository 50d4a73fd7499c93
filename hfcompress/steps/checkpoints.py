"""Checkpoints of a training: which of them is whole, after a run that may have been killed."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import get_last_checkpoint

from hfcompress.errors import first_line
from hfcompress.utils import Progress, damaged_files, write_digests

_NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


def mark_whole(checkpoint: Path) -> None:
    """Write the digests of a checkpoint's files beside them; nothing where there is no folder."""
    if checkpoint.is_dir():
        write_digests(checkpoint)


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
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        progress.note(
            f"{path.name} of an interrupted training cannot be used ({problem}); training goes on "
            f"from the one before, or from the start"
        )
    return None


def _problem(checkpoint: Path) -> str | None:
    """Why training cannot go on from a checkpoint; None where it can."""
    damaged = damaged_files(checkpoint)
    if damaged is not None:
        return f"{', '.join(damaged)} differ from what was written" if damaged else None
    # Cut before it was whole, or written by a version that kept no digests.
    missing = [name for name in _NEEDED if not (checkpoint / name).is_file()]
    if missing:
        return f"{', '.join(missing)} is missing"
    problems = (_unreadable(path) for path in sorted(checkpoint.iterdir()))
    return next((problem for problem in problems if problem), None)


def _unreadable(path: Path) -> str | None:
    """Why a file of a checkpoint cannot be read to its end; None where it can, or is not known."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                return None
        elif path.suffix in (".pt", ".pth"):  # torch.save writes zip files with checksums
            with zipfile.ZipFile(path) as parts:
                return f"{path.name} is damaged" if parts.testzip() else None
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
        return f"{path.name}: {first_line(error)}"
    return None
