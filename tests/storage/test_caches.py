"""The caches: what is listed, what is found damaged, what is removed and what stays."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from hfcompress.cli.commands import main
from hfcompress.errors import ConfigError
from hfcompress.storage.caches import (
    CacheEntry,
    Kind,
    cache_entries,
    cache_limit,
    find_damage,
    keep_below_limit,
    prune_cache,
)
from hfcompress.utils import file_digest, write_digests

DAY = 24 * 3600


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def make(tmp_path: Path, name: str, kind: Kind = "step", size: int = 1000, age: float = 0) -> Path:
    """An entry of a size in bytes, used so many days ago."""
    parents = {"step": "cache/steps", "teacher": "datasets/hfcompress-teachers"}
    folder = tmp_path / parents[kind] / name
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * size)
    if kind == "step":
        (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
        write_digests(folder)
    else:
        digests = {"weights": file_digest(folder / "weights")}
        (folder / "meta.json").write_text(json.dumps({"rows": 1200, "digests": digests}))
    os.utime(folder, (time.time() - age * DAY,) * 2)
    return folder


def names(entries: list[CacheEntry]) -> list[str]:
    return [entry.path.name for entry in entries]


def test_entries_are_listed_by_their_last_use(tmp_path: Path) -> None:
    make(tmp_path, "b", age=1)
    make(tmp_path, "c", "teacher", age=2)
    make(tmp_path, "a.partial", age=0)
    make(tmp_path, "d.damaged", age=3)
    (tmp_path / "cache" / "steps" / ".x.tmp").mkdir()
    entries = cache_entries()
    assert names(entries) == ["d.damaged", "c", "b", "a.partial"]
    assert [entry.state for entry in entries] == ["damaged", "whole", "whole", "unfinished"]
    assert [entry.contents for entry in entries[1:3]] == ["outputs for 1,200 rows", "BertModel"]
    assert entries[1].bytes > 1000
    assert not any(entry.is_in_use for entry in entries)
    assert not (tmp_path / "cache" / "locks").exists()  # looking writes nothing


@pytest.mark.parametrize("kind", ["step", "teacher"])
def test_a_changed_byte_is_found(tmp_path: Path, kind: Kind) -> None:
    folder = make(tmp_path, "a", kind)
    assert [find_damage(entry) for entry in cache_entries()] == [None]
    (folder / "weights").write_bytes(b"y" + b"x" * 999)
    (entry,) = cache_entries()
    assert find_damage(entry) == "differs from what was written: weights"
    (folder / "weights").unlink()
    assert find_damage(entry) == "differs from what was written: weights"


def test_pruning_by_age_and_size_removes_what_was_used_longest_ago(tmp_path: Path) -> None:
    for age in range(5):
        make(tmp_path, f"s{age}", age=age)
    assert names(prune_cache(older_than=3.5)) == ["s4"]
    one = cache_entries()[0].bytes
    assert names(prune_cache(max_bytes=2 * one)) == ["s3", "s2"]
    assert names(cache_entries()) == ["s1", "s0"]
    assert names(prune_cache(max_bytes=0)) == ["s1", "s0"]
    assert list((tmp_path / "cache" / "steps").iterdir()) == []
    with pytest.raises(ConfigError, match="less than nothing"):
        prune_cache(older_than=-1)


@pytest.mark.parametrize("kind", ["step", "teacher"])
def test_an_entry_that_a_process_uses_stays(tmp_path: Path, kind: Kind) -> None:
    make(tmp_path, "a", kind, age=9)
    make(tmp_path, "b", kind, age=8)
    (used, _) = cache_entries()
    used.lock.parent.mkdir(exist_ok=True)
    with FileLock(used.lock):
        assert cache_entries()[0].is_in_use
        assert names(prune_cache(max_bytes=0)) == ["b"]
    assert names(prune_cache(max_bytes=0)) == ["a"]


def test_adding_an_entry_keeps_the_cache_below_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "u.partial", age=30, size=3000)
    for age in (3, 2, 1):
        added = make(tmp_path, f"s{age}", age=age, size=3000)
    assert keep_below_limit("step", added) == []
    monkeypatch.setenv("HFCOMPRESS_CACHE_LIMIT", "8KB")
    assert names(keep_below_limit("step", added)) == ["s3", "s2"]
    monkeypatch.setenv("HFCOMPRESS_CACHE_LIMIT", "1KB")
    assert keep_below_limit("step", added) == []  # neither what is new nor lost work
    assert names(cache_entries()) == ["u.partial", "s1"]
    monkeypatch.setenv("HFCOMPRESS_CACHE_LIMIT", "none")
    assert cache_limit() is None
    monkeypatch.setenv("HFCOMPRESS_CACHE_LIMIT", "much")
    with pytest.raises(ConfigError, match="HFCOMPRESS_CACHE_LIMIT: cannot parse size 'much'"):
        cache_limit()


def test_the_command_lists_verifies_and_prunes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path, "a", age=5)
    make(tmp_path, "b", "teacher")
    assert main(["cache", "--verify"]) == 0
    assert "2 entries" in capsys.readouterr().out
    (folder / "weights").write_bytes(b"short")
    assert main(["cache", "--verify", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [entry["damage"] for entry in data["entries"]] == [
        "differs from what was written: weights", None,
    ]  # fmt: skip
    assert data["limit"] == 20 * 10**9
    assert main(["cache", "--older-than", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [str(folder)]
    assert main(["cache", "--max-size", "1MB"]) == 0
    assert "1 entry" in capsys.readouterr().out
    for wrong in (["--max-size", "ten bananas"], ["--older-than", "-3"]):
        assert main(["cache", *wrong]) == 2
        assert "error:" in capsys.readouterr().err
