"""Temporary folders that do not outlive their process: what a killed one leaves, the next run
removes.

A process holds a lock on each folder that it makes here, and the system frees it when the process
ends, however. A folder that nobody holds is left over. Where folders cannot be locked (Windows,
some shared file systems), leftovers go a day later.
"""

from __future__ import annotations

import functools
import glob
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from pathlib import Path

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_NB, flock

_PREFIX = "hfcompress-tmp-"
_DAY = 24 * 3600


def temporary_root() -> str:
    """The folder for all that this process needs for a while; removed when it ends."""
    return _root_of(os.getpid(), tempfile.gettempdir())


def temporary_folder() -> Path:
    """Make a folder in `temporary_root`; the caller removes it, or the end of the process does."""
    return Path(tempfile.mkdtemp(dir=temporary_root()))


def remove_left_roots() -> None:
    """Remove the `temporary_root` of this user's processes that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if not hasattr(os, "getuid") or left.lstat().st_uid == os.getuid():
                _remove_unheld(left)


@functools.cache  # by process: a forked one must not work in its parent's folder
def _root_of(pid: int, parent: str) -> str:
    root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    held = _hold(root)
    if not root.exists():  # another process swept between the two lines above
        return _root_of.__wrapped__(pid, parent)

    def remove() -> None:
        shutil.rmtree(root, ignore_errors=True)
        _release(held)

    # Not atexit: worker processes end without it.
    Finalize(None, remove, exitpriority=0)
    return str(root)


@contextmanager
def written_beside(directory: Path) -> Iterator[Path]:
    """A new folder beside another one, to be filled and renamed (`replace_folder`); it is gone
    when the body ends, and so is what a killed process has left of the same name."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(directory.parent, directory.name)
    temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:16]}.tmp")
    temporary.mkdir()
    held = _hold(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _release(held)


def replace_folder(temporary: Path, directory: Path) -> None:
    """Rename a folder over another one.

    A crash between the two renames leaves the former one as ``.NAME.*.old``, and
    `remove_leftovers` gives it its name back.
    """
    old = temporary.with_suffix(".old")
    if directory.exists():
        os.replace(directory, old)
    os.replace(temporary, directory)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path, name: str | None = None, files: bool = False) -> None:
    """Remove temporary folders that nobody holds; give a replaced one its name back where the new
    one did not come.

    Args:
        folder: where to look, not below it.
        name: of the folder that they were to become; None for any.
        files: also remove temporary files of `atomic_write`; for folders that the caller has
            locked, because nobody holds a file.
    """
    pattern = f".{'*' if name is None else glob.escape(name)}.*"
    with suppress(OSError):
        for old in folder.glob(f"{pattern}.old"):
            directory = old.with_name(old.name[1:].rsplit(".", 2)[0])
            if directory.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(old, directory)
    with suppress(OSError):
        for left in folder.glob(f"{pattern}.tmp"):
            if left.is_dir():
                _remove_unheld(left)
            elif files:
                left.unlink(missing_ok=True)


def _remove_unheld(folder: Path) -> None:
    try:
        held = _hold(folder)
        if held is None and time.time() - folder.stat().st_mtime < _DAY:
            return
    except OSError:  # held, or gone by now
        return
    shutil.rmtree(folder, ignore_errors=True)
    _release(held)


def _hold(folder: Path) -> int | None:
    """Lock a folder until this process ends or `_release`; None where folders cannot be locked.

    Raises:
        BlockingIOError: another process, or another part of this one, holds it.
    """
    if sys.platform == "win32":
        return None
    number = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        flock(number, LOCK_EX | LOCK_NB)
    except OSError as error:
        os.close(number)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return number


def _release(held: int | None) -> None:
    if held is not None:
        os.close(held)
