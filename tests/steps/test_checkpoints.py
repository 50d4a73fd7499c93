"""Training goes on from the newest whole checkpoint, whatever a killed run left."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hfcompress.steps.checkpoints import LOSS, kept_loss, last_checkpoint, save_whole
from hfcompress.utils import DIGESTS, Progress, write_digests

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
    (path / LOSS).write_text("1.5")
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
        write_digests(checkpoint(tmp_path, step))
    assert last_checkpoint(tmp_path, heard) == str(tmp_path / "checkpoint-10")
    assert kept_loss(last_checkpoint(tmp_path, heard)) == 1.5
    assert not heard.notes


@pytest.mark.parametrize("damage", [cut, change, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    heard = Notes()
    for step in (2, 4):
        write_digests(checkpoint(tmp_path, step))
    damage(tmp_path / "checkpoint-4" / name)
    assert last_checkpoint(tmp_path, heard) == str(tmp_path / "checkpoint-2")
    assert len(heard.notes) == 1
    assert name in heard.notes[0]
    assert (tmp_path / "broken-checkpoint-4").is_dir()


def test_a_checkpoint_that_was_not_marked_is_not_used(tmp_path: Path) -> None:
    write_digests(checkpoint(tmp_path, 2))
    checkpoint(tmp_path, 4)
    assert last_checkpoint(tmp_path, Notes()) == str(tmp_path / "checkpoint-2")


def test_digests_that_are_cut_are_no_proof(tmp_path: Path) -> None:
    write_digests(checkpoint(tmp_path, 4))
    cut(tmp_path / "checkpoint-4" / DIGESTS)
    assert last_checkpoint(tmp_path, Notes()) is None


def test_a_checkpoint_is_marked_before_the_one_before_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, state = Notes(), SimpleNamespace(global_step=0)

    def save(model: object, trial: object) -> None:
        assert len(list(tmp_path.glob("checkpoint-*"))) == (state.global_step > 2)
        checkpoint(tmp_path, state.global_step)

    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(tmp_path)), state=state, _save_checkpoint=save,
        _total_loss_scalar=2.0,
    )  # fmt: skip
    save_whole(trainer, 1.0, heard)
    for state.global_step in (2, 4):
        trainer._save_checkpoint(None, None)
    newest = last_checkpoint(tmp_path, heard)
    assert newest == str(tmp_path / "checkpoint-4")
    assert kept_loss(newest) == 3.0
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    assert not heard.notes
    monkeypatch.setattr("hfcompress.steps.checkpoints.write_digests", full)
    state.global_step = 6
    trainer._save_checkpoint(None, None)
    assert "No space left" in heard.notes[0]
    assert last_checkpoint(tmp_path, heard) == newest


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
