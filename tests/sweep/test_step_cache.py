"""The folder of kept steps: what killed processes leave goes, what is written stays."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hfcompress.sweep.cache import StepCache
from hfcompress.utils import DIGESTS, Progress
from tests.tiny_models import tiny_bert


def test_leftovers_of_killed_processes_go_a_day_later(tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    old, new, kept = steps / ".aa.1.tmp", steps / ".bb.2.tmp", steps / "cc"
    for folder in (old, new, kept):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    before = time.time() - 2 * 24 * 3600
    for folder in (old, kept):
        os.utime(folder, (before, before))
    StepCache(tmp_path)
    assert sorted(path.name for path in steps.iterdir()) == [".bb.2.tmp", "cc"]


def test_a_cache_that_is_not_there_yet_is_no_error(tmp_path: Path) -> None:
    assert StepCache(tmp_path / "none").folder("key") == tmp_path / "none" / "steps" / "key"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 64
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "done.json", DIGESTS])
def test_a_damaged_entry_is_set_aside_with_a_word(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    cache, model, heard = StepCache(tmp_path), tiny_bert(), Notes()
    cache.put("key", model, {"updates": 3})
    kept = cache.get("key", model, heard)
    assert kept is not None
    assert all(
        torch.equal(a, b) for a, b in zip(kept.parameters(), model.parameters(), strict=True)
    )
    assert not heard.notes
    if name == DIGESTS and damage is Path.unlink:
        return  # an older version's entry, see below
    damage(cache.folder("key") / name)
    assert cache.get("key", model, heard) is None
    assert not cache.folder("key").exists()
    assert (tmp_path / "steps" / "key.damaged").is_dir()
    assert len(heard.notes) == 1
    assert "damaged" in heard.notes[0]
    cache.put("key", model, {"updates": 3})
    assert cache.get("key", model) is not None


def test_an_older_versions_entry_is_read_unless_it_is_cut(tmp_path: Path) -> None:
    cache, model = StepCache(tmp_path), tiny_bert()
    cache.put("key", model, {})
    (cache.folder("key") / DIGESTS).unlink()
    assert cache.get("key", model) is not None
    cut(cache.folder("key") / "model.safetensors")
    assert cache.get("key", model) is None


def test_a_model_that_fails_to_load_whole_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, model = StepCache(tmp_path), tiny_bert()
    cache.put("key", model, {})

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("hfcompress.sweep.cache.saved_class", fails)
    with pytest.raises(MemoryError):
        cache.get("key", model)
    assert cache.folder("key").is_dir()
