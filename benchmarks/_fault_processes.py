"""Runs of hfcompress in forked processes that are killed, and what is left of them.

The process that forks has imported everything, so that a run costs its own work alone. Nothing in
it may have started threads: a forked process would wait for them for ever.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from hfcompress.cli import main
from hfcompress.sweep import timing

# Only a run that hangs takes so long, on a busy machine, too.
TIMEOUT = 1800.0
_TEMPORARY = re.compile(r"\.tmp$|\.old$|\.partial|^broken-|\.lock\.json$|^tmp|^hfcompress-tmp-")
Hook = Callable[[], None]


@dataclass(frozen=True)
class Place:
    """Where a run works: its folder, its cache, and its temporary files."""

    root: Path
    shared_cache: Path | None = None
    log_name: str = "log.txt"

    @property
    def output(self) -> Path:
        return self.root / "out"

    @property
    def cache(self) -> Path:
        return self.shared_cache or self.root / "cache"

    @property
    def datasets(self) -> Path:
        """The cache of `datasets`, with what teachers have answered."""
        return self.cache.with_name(f"{self.cache.name}-datasets")

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def log(self) -> Path:
        return self.root / self.log_name

    def made(self) -> Place:
        for folder in (self.root, self.cache, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)
        return self

    def leftovers(self) -> list[str]:
        """Temporary files and folders, and records of locks that nobody holds."""
        found = [
            path for top in (self.output, self.cache, self.datasets) for path in top.rglob("*")
        ]
        named = [path for path in found if _TEMPORARY.search(path.name)]
        return [str(path) for path in named] + [
            path.name for path in self.temporary.iterdir() if _TEMPORARY.search(path.name)
        ]


@dataclass
class Run:
    """A forked process that carries out one command.

    Attributes:
        pid: of the process, which leads a session of its own.
        log: what it prints, after what other runs of its place have printed.
        begin: where that begins.
        started: ``time.monotonic``.
        code: its exit code, negative for a signal; None while it runs.
    """

    pid: int
    log: Path
    begin: int
    started: float = field(default_factory=time.monotonic)
    code: int | None = None

    def wait(self, seconds: float = TIMEOUT) -> int | None:
        """The exit code; None where it still runs after so many seconds."""
        end = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                break
            else:
                time.sleep(0.005)
        return self.code

    def members(self) -> list[int]:
        """Processes of its session that are alive, but for the first."""
        return [pid for pid in _session(self.pid) if pid != self.pid]

    def end(self) -> None:
        """Kill whatever is left of it."""
        for pid in _session(self.pid):
            _kill(pid, signal.SIGKILL)
        self.wait(10)

    def signal(self, number: int) -> None:
        """Send a signal, where the process still runs."""
        if self.wait(0) is None:
            _kill(self.pid, number)

    @property
    def printed(self) -> str:
        return self.log.read_bytes()[self.begin :].decode(errors="replace")


def start(arguments: Sequence[str], place: Place, hook: Hook | None = None) -> Run:
    """Fork a process that runs ``hfcompress ARGUMENTS``.

    Args:
        arguments: of the command line.
        place: where it works.
        hook: called in the process before the command.
    """
    place.made()
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    begin = os.fstat(log).st_size
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(log)
        return Run(pid, place.log, begin)
    code = 70
    try:
        os.setsid()
        os.dup2(log, 1), os.dup2(log, 2)
        _settle(place)
        if hook is not None:
            hook()
        code = main(list(arguments))
        threading._shutdown()  # type: ignore[attr-defined]  # as the end of the interpreter
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _settle(place: Place) -> None:
    """Let this process be like one that a shell has started there."""
    # Workers import the main module of the process that spawns them.
    sys.modules["__main__"] = type(sys)("__main__")
    os.environ["HFCOMPRESS_CACHE"] = str(place.cache)
    os.environ["TMPDIR"] = str(place.temporary)
    tempfile.tempdir = None
    datasets.config.HF_DATASETS_CACHE = place.datasets
    timing.SECONDS = 0.0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def write_modules(path: Path) -> Hook:
    """A hook that writes the names of the process's modules when it ends, for `import_all`."""

    def hook() -> None:
        atexit.register(lambda: path.write_text(json.dumps(sorted(sys.modules))))

    return hook


def import_all(path: Path) -> None:
    """Import what another process has needed."""
    for name in json.loads(path.read_text()):
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(Exception):  # not all can be imported by name
                importlib.import_module(name)


def _session(leader: int) -> list[int]:
    """Processes of a session that are not zombies."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = place.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(place.parent.name))
    return found


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
