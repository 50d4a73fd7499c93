"""The caches on disk: models of steps, and outputs of teachers. Listed, verified and pruned.

::

    $HFCOMPRESS_CACHE/steps/KEY                         a model that a step has made
    $HFCOMPRESS_CACHE/locks/KEY.lock                    held by the process that makes or reads it
    $HF_DATASETS_CACHE/hfcompress-teachers/KEY          a teacher's outputs
    $HF_DATASETS_CACHE/hfcompress-teachers/KEY.lock

A folder ``KEY.partial...`` is of an unfinished training or build, ``KEY.damaged`` was set aside.
Each of the two caches keeps itself below a limit: where an entry is added, those used longest ago
go, but none that a process uses.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hfcompress.errors import ConfigError
from hfcompress.utils import DIGESTS, Fields, cache_folder, different_files, parse_size

Kind = Literal["step", "teacher"]
State = Literal["whole", "unfinished", "damaged"]
LIMIT = "20GB"
_DAY = 24 * 3600.0


@dataclass(frozen=True)
class CacheEntry:
    """One entry of a cache.

    Attributes:
        kind: what it is: a step's model or a teacher's outputs.
        state: whole, of an unfinished training or build, or set aside as damaged.
        path: its folder.
        bytes: of its files.
        used: seconds since the epoch when it was last read or written.
    """

    kind: Kind
    state: State
    path: Path
    bytes: int
    used: float

    @property
    def key(self) -> str:
        """The content hash that names it."""
        return self.path.name.split(".")[0]

    @property
    def lock(self) -> Path:
        """The lock file of the process that makes or reads it."""
        folder = self.path.parent
        return (folder.parent / "locks" if self.kind == "step" else folder) / f"{self.key}.lock"

    @property
    def is_in_use(self) -> bool:
        """Whether a process holds its lock."""
        if not self.lock.is_file():
            return False
        with _held(self.lock) as is_free:
            return not is_free

    @property
    def contents(self) -> str:
        """What it holds, in a few words; empty where that cannot be read."""
        if self.kind == "teacher":
            meta = _read_json(self.path / "meta.json")
            return f"outputs for {meta['rows']:,} rows" if "rows" in meta else ""
        config = _read_json(self.path / "config.json")
        return ", ".join(map(str, config.get("architectures") or ()))

    def to_dict(self) -> Fields:
        """It as plain data."""
        return {
            "kind": self.kind, "state": self.state, "path": str(self.path), "bytes": self.bytes,
            "used": self.used, "in_use": self.is_in_use, "contents": self.contents,
        }  # fmt: skip


def teacher_folder() -> Path:
    """Where outputs of teachers are kept: in the cache of ``datasets``."""
    import datasets  # takes a second, and most commands need no teacher

    return Path(datasets.config.HF_DATASETS_CACHE) / "hfcompress-teachers"


def cache_entries(kind: Kind | None = None, folder: Path | None = None) -> list[CacheEntry]:
    """The entries of the caches, the one used longest ago first.

    Args:
        kind: of one cache alone; None for both.
        folder: where that cache is; by default where the runs of this user keep it.
    """
    if kind is None:
        found = [*cache_entries("step"), *cache_entries("teacher")]
        return sorted(found, key=lambda entry: entry.used)
    if folder is None:
        folder = cache_folder() / "steps" if kind == "step" else teacher_folder()
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    entries = [
        entry
        for path in paths
        if path.is_dir() and not path.name.startswith(".") and (entry := _entry(kind, path))
    ]
    return sorted(entries, key=lambda entry: entry.used)


def find_damage(entry: CacheEntry) -> str | None:
    """What is wrong with an entry's files, compared with the digests kept with them, in a few
    words; None where they are as they were written."""
    if entry.state != "whole":
        return entry.state
    name, field = (DIGESTS, None) if entry.kind == "step" else ("meta.json", "digests")
    data = _read_json(entry.path / name)
    digests = data if field is None else data.get(field)
    if not digests or not isinstance(digests, dict):
        return f"no digests in {name}: written by an older version, or damaged"
    wrong = different_files(entry.path, digests)
    return f"differs from what was written: {', '.join(wrong)}" if wrong else None


def prune_cache(
    older_than: float | None = None,
    max_bytes: int | None = None,
    entries: Sequence[CacheEntry] | None = None,
    progress: Callable[[CacheEntry], None] = lambda _: None,
) -> list[CacheEntry]:
    """Remove entries that were used longest ago, damaged ones first; return those removed.

    An entry that a process uses stays, and so does one that cannot be removed.

    Args:
        older_than: days since the last use; None for no limit.
        max_bytes: size of all that may stay; None for no limit.
        entries: which to consider; those of both caches by default.
        progress: receives each entry that was removed.

    Raises:
        ConfigError: a negative limit.
    """
    if (older_than or 0) < 0 or (max_bytes or 0) < 0:
        raise ConfigError("a cache cannot be pruned to less than nothing; give 0 or more")
    entries = cache_entries() if entries is None else entries
    left = sum(entry.bytes for entry in entries)
    now, removed = time.time(), []
    for entry in sorted(entries, key=lambda entry: (entry.state != "damaged", entry.used)):
        is_old = older_than is not None and now - entry.used > older_than * _DAY
        if (is_old or (max_bytes is not None and left > max_bytes)) and _remove(entry):
            left -= entry.bytes
            removed.append(entry)
            progress(entry)
    return removed


def keep_below_limit(kind: Kind, added: Path) -> list[CacheEntry]:
    """Remove what was used longest ago where a cache exceeds the limit; return what was removed.

    Unfinished trainings stay: they would be lost work.

    Args:
        kind: of the cache.
        added: an entry that was just made, which stays.

    Raises:
        ConfigError: the limit cannot be read.
    """
    limit = cache_limit()
    if limit is None:
        return []
    every = cache_entries(kind, added.parent)
    movable = [entry for entry in every if entry.state != "unfinished" and entry.path != added]
    others = sum(entry.bytes for entry in every) - sum(entry.bytes for entry in movable)
    return prune_cache(max_bytes=max(limit - others, 0), entries=movable)


def cache_limit() -> int | None:
    """Bytes that each cache may have: ``$HFCOMPRESS_CACHE_LIMIT``, or 20 GB; None for any number.

    Raises:
        ConfigError: the variable is neither a size nor ``none``.
    """
    text = os.environ.get("HFCOMPRESS_CACHE_LIMIT") or LIMIT
    if text.lower() == "none":
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise ConfigError(f"HFCOMPRESS_CACHE_LIMIT: {error}, or none") from None


def mark_used(path: Path) -> None:
    """Note that an entry was read just now, where its folder can be written."""
    with suppress(OSError):
        os.utime(path)


def _entry(kind: Kind, path: Path) -> CacheEntry | None:
    state: State = "whole"
    if path.name.endswith(".damaged"):
        state = "damaged"
    elif ".partial" in path.name:
        state = "unfinished"
    try:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return CacheEntry(kind, state, path, size, path.stat().st_mtime)
    except OSError:  # another process removes it just now
        return None


def _remove(entry: CacheEntry) -> bool:
    """Remove an entry under its lock; False where a process uses it or it cannot be removed."""
    gone = entry.path.with_name(f".{entry.path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with _held(entry.lock) as is_free:
            if not is_free:
                return False
            os.replace(entry.path, gone)  # first, so that nobody reads half of it
            shutil.rmtree(gone, ignore_errors=True)
    except OSError:
        return False
    return True


@contextmanager
def _held(lock: Path) -> Iterator[bool]:
    """Hold a lock file for a moment; gives False where another process holds it."""
    from filelock import FileLock, Timeout

    own = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        own.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        own.release()


def _read_json(path: Path) -> Fields:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
