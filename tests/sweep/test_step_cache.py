"""The folder of kept steps: what killed processes leave goes, what is written stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from hfcompress.storage.temporary import written_beside
from hfcompress.sweep.cache import StepCache
from hfcompress.utils import DIGESTS, Progress
from tests.tiny_models import tiny_bert


def test_what_a_killed_process_left_goes_at_the_next_start(tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    for name in (".aa.1.tmp", "cc"):
        (steps / name).mkdir(parents=True)
        (steps / name / "model.safetensors").write_bytes(b"half")
    with written_beside(steps / "bb") as writing:  # by a process that is alive
        StepCache(tmp_path)
        assert sorted(path.name for path in steps.iterdir()) == [writing.name, "cc"]
    assert [path.name for path in steps.iterdir()] == ["cc"]


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
    cache.put("key", model, {"updates": 3}, heard)
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
    cache.put("key", model, {"updates": 3}, heard)
    assert cache.get("key", model, Progress()) is not None


def test_an_older_versions_entry_is_read_unless_it_is_cut(tmp_path: Path) -> None:
    cache, model = StepCache(tmp_path), tiny_bert()
    cache.put("key", model, {}, Progress())
    (cache.folder("key") / DIGESTS).unlink()
    assert cache.get("key", model, Progress()) is not None
    cut(cache.folder("key") / "model.safetensors")
    assert cache.get("key", model, Progress()) is None


def test_a_model_that_fails_to_load_whole_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, model = StepCache(tmp_path), tiny_bert()
    cache.put("key", model, {}, Progress())

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("hfcompress.sweep.cache.saved_class", fails)
    with pytest.raises(MemoryError):
        cache.get("key", model, Progress())
    assert cache.folder("key").is_dir()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX")
def test_a_cache_that_cannot_be_written_costs_what_it_would_keep(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache, model, heard = StepCache(tmp_path / "file"), tiny_bert(), Notes()
    with cache.locked("key", heard):
        assert cache.partial("key", heard) is None
        assert cache.get("key", model, heard) is None
        cache.put("key", model, {"updates": 3}, heard)
    assert len(heard.notes) == 1
    assert "the cache is not used" in heard.notes[0]


def test_a_disk_that_is_full_costs_the_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    cache, model, heard = StepCache(tmp_path), tiny_bert(), Notes()
    assert cache.partial("key", heard) is not None
    monkeypatch.setattr(type(model), "save_pretrained", full)
    cache.put("key", model, {"updates": 3}, heard)
    assert "No space left on device" in heard.notes[0]
    assert not list((tmp_path / "steps").iterdir())


def test_checkpoints_beside_a_finished_entry_are_removed(tmp_path: Path) -> None:
    cache, model, heard = StepCache(tmp_path), tiny_bert(), Notes()
    cache.put("key", model, {"updates": 3}, heard)
    unfinished = cache.partial("key", heard)  # as a kill leaves it that comes between the two
    assert unfinished is not None
    (unfinished / "checkpoint-3").mkdir()
    assert cache.get("key", model, heard) is not None
    assert not unfinished.exists()


def test_the_entry_of_a_faster_process_stays(tmp_path: Path) -> None:
    cache, model, heard = StepCache(tmp_path), tiny_bert(), Notes()
    cache.put("key", model, {"updates": 3}, heard)
    cache.put("key", tiny_bert(seed=1), {"updates": 4}, heard)
    assert cache.done("key") == {"updates": 3}
    assert not heard.notes
