"""Kills at a chosen point of the writing: before the N-th touch of files of a kind, or within it.

A hook of the interpreter's audit events sees every file that Python opens for writing, renames or
removes; safetensors and torch write by themselves and are wrapped.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

KINDS = {
    "checkpoint": r"\.partial/checkpoint-",
    "cache entry": r"/steps/\.?[0-9a-f]{16}(?!\.partial)|hfcompress-teachers/|/locks/",
    "row": r"/out/(\.?(results\.jsonl|failures|weights\.jsonl|search|measured)|predictions)",
    "page": r"/out/\.?(report\.html|results\.csv|\w+\.png)",
    "quantized folder": r"/out/(models|\.?model)\b",
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Aim:
    """Counts the touches of files of one kind, and ends the process at one of them.

    Args:
        kind: of `KINDS`.
        at: which touch; None counts only.
        keep: share of the file's bytes that are left where the touch is a write.
        count: receives the number of touches so far, for an undisturbed run.
    """

    def __init__(self, kind: str, at: int | None, keep: float, count: Path | None = None) -> None:
        self.pattern, self.at, self.keep, self.count = re.compile(KINDS[kind]), at, keep, count
        self.seen = 0

    def __call__(self) -> None:
        """Set the hooks, in the process that is to end."""
        sys.addaudithook(self._event)
        self._wrap(os, "fsync", lambda arguments: Path(f"/proc/self/fd/{arguments[0]}").resolve())
        self._wrap(safetensors.torch, "serialize_file", lambda arguments: arguments[1])
        self._wrap(torch, "save", lambda arguments: arguments[1])

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            self._touch(arguments[0])
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            self._touch(arguments[1] if event == "os.rename" else arguments[0])

    def _wrap(self, module: Any, name: str, path: Callable[[tuple[Any, ...]], object]) -> None:
        plain = getattr(module, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            done = plain(*arguments, **named)
            self._touch(path(arguments), torn=True)
            return done

        setattr(module, name, wrapped)

    def _touch(self, path: object, torn: bool = False) -> None:
        if not isinstance(path, (str, Path)) or not self.pattern.search(str(path)):
            return
        self.seen += 1
        if self.count is not None:
            number = os.open(self.count, os.O_WRONLY)
            os.write(number, f"{self.seen:8d}".encode())
            os.close(number)
        if self.seen == self.at:
            if torn and os.path.isfile(path):
                _cut(Path(path), self.keep)
            os.kill(os.getpid(), signal.SIGKILL)


def _cut(path: Path, keep: float) -> None:
    """Leave a share of a file; of a file of rows, of its last row."""
    content = path.read_bytes()
    begin = content.rfind(b"\n", 0, -1) + 1 if path.suffix == ".jsonl" else 0
    os.truncate(path, begin + int((len(content) - begin) * keep))
