"""Training goes on from the newest whole checkpoint, whatever a killed run left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hfcompress.steps.checkpoints import last_checkpoint, mark_whole
from hfcompress.utils import DIGESTS, Progress

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"weight": torch.ones(64)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.ones(64)}, path / name)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    heard = Notes()
    assert last_checkpoint(tmp_path / "none", heard) is None
    for step in (2, 10):
        mark_whole(checkpoint(tmp_path, step))
    assert last_checkpoint(tmp_path, heard) == str(tmp_path / "checkpoint-10")
    assert not heard.notes


@pytest.mark.parametrize("damage", [cut, change, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    heard = Notes()
    for step in (2, 4):
        mark_whole(checkpoint(tmp_path, step))
    damage(tmp_path / "checkpoint-4" / name)
    assert last_checkpoint(tmp_path, heard) == str(tmp_path / "checkpoint-2")
    assert len(heard.notes) == 1
    assert name in heard.notes[0]
    assert (tmp_path / "broken-checkpoint-4").is_dir()


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize("name", [name for name in FILES if name != "rng_state.pth"])
def test_a_checkpoint_that_was_not_marked_must_be_readable(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    checkpoint(tmp_path, 4)
    assert last_checkpoint(tmp_path, Notes()) == str(tmp_path / "checkpoint-4")
    if name == "model.safetensors" and damage is Path.unlink:
        return  # an adapter's checkpoint has weights of another name
    damage(tmp_path / "checkpoint-4" / name)
    assert last_checkpoint(tmp_path, Notes()) is None


def test_digests_that_are_cut_are_no_proof(tmp_path: Path) -> None:
    mark_whole(checkpoint(tmp_path, 4))
    cut(tmp_path / "checkpoint-4" / DIGESTS)
    assert last_checkpoint(tmp_path, Notes()) is None
