"""Run code in a fork of the tests' process, which has imported everything: a tenth of a second.

For what only a process of its own shows (exit codes, signals, what is printed). What must not be
imported beforehand is run by `tests.fresh_process`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

_SECONDS = 240


def run_forked(function: Callable[[], int | None]) -> subprocess.CompletedProcess[str]:
    """The exit code of a function in a forked process, and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "out"), Path(folder, "err")
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork beside threads. The child uses none of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            _carry_out(function, files)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out, err = (path.read_text(encoding="utf-8") for path in files)
        return subprocess.CompletedProcess([str(function)], code, out, err)


def run_script(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a file as ``python SCRIPT ARGUMENTS`` does, in a forked process."""

    def run() -> None:
        sys.argv = [str(script), *arguments]
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")

    return run_forked(run)


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes of a sweep are forked: a spawned one imports for five seconds."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr("multiprocessing.get_context", lambda kind: context)


def _carry_out(function: Callable[[], int | None], files: tuple[Path, Path]) -> NoReturn:
    code = 1
    with contextlib.suppress(BaseException):
        signal.alarm(_SECONDS)  # ends the process where a run hangs
        for stream, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or it warns of the fork
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        try:
            code = function() or 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # without pytest's own handlers at the end of a process
