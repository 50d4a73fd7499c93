"""Runs a function in a forked child of this process, and tells what it did.

The child shares what the parent has imported, so that a case costs milliseconds. It is watched
through Python's audit hooks: opening files for writing, renaming, removing, starting programs,
connecting, unpickling. What libraries do in other languages is seen by what lies on disk
afterwards: `listing` before and after, and the canaries of `_samples`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_WRITES = {
    "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink",
    "os.truncate", "os.utime", "shutil.copyfile", "shutil.move", "shutil.rmtree",
}  # fmt: skip
_RUNS = {
    "os.exec", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "socket.connect",
    "subprocess.Popen",
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Libraries look up their own functions in pickles of their own; these would be an attack.
_PICKLED = {"builtins", "os", "posix", "shutil", "subprocess", "sys"}
_ADDRESS_SPACE = 16 << 30  # bytes; more is an error in the child instead of the machine's end


@dataclass(frozen=True)
class Ended:
    """How a watched function ended.

    Attributes:
        code: exit code that the function gave; None where it was killed, or crashed.
        output: what it printed.
        answer: plain data that it gave.
        seconds: of processor time, since other processes may be at work; of wall-clock where it
            was killed.
        megabytes: most memory above that at the start.
        writes: what it wrote, moved or removed outside of where it may.
        runs: programs, connections and code of the input that it started.
    """

    code: int | None
    output: str
    answer: object
    seconds: float
    megabytes: float
    writes: tuple[str, ...]
    runs: tuple[str, ...]


def watched(
    body: Callable[[], tuple[int, object]], inside: Path, given: Path, limit: float = 60.0
) -> Ended:
    """Run a function in a child process.

    Args:
        body: returns an exit code and plain data.
        inside: the only folder that may be written to; the working directory.
        given: folder of the input, of which no code may run.
        limit: seconds of wall-clock after which the child is killed.
    """
    printed, told = inside / "printed.txt", inside / "told.json"
    started = time.perf_counter()
    with warnings.catch_warnings():
        # Python 3.12: a fork beside threads. The child uses none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        code = 70
        with contextlib.suppress(BaseException):
            code = _in_child(body, inside, given, printed, told)
        os._exit(code)
    status = _wait(child, started + limit)
    seconds = time.perf_counter() - started
    output = printed.read_text(encoding="utf-8", errors="replace") if printed.is_file() else ""
    if not told.is_file():
        ending = "killed after its time" if status is None else f"ended by {status}"
        return Ended(None, f"{output}\n({ending})", None, seconds, 0.0, (), ())
    data = json.loads(told.read_text(encoding="utf-8"))
    return Ended(
        data["code"], output, data["answer"], data["seconds"], data["megabytes"],
        tuple(data["writes"]), tuple(data["runs"]),
    )  # fmt: skip


def _wait(child: int, until: float) -> int | None:
    """The child's status; None where it had to be killed."""
    while time.perf_counter() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _in_child(
    body: Callable[[], tuple[int, object]], inside: Path, given: Path, printed: Path, told: Path
) -> int:
    os.chdir(inside)
    target = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(target, number)
    sys.stdout = sys.stderr = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    watch = _Watch(inside, given)
    sys.addaudithook(watch)
    Path("/proc/self/clear_refs").write_text("5")  # the most memory counts from here on
    before = _status("VmRSS")
    started = time.process_time()
    watch.active = True
    code: int | None = None
    answer: object = None
    try:
        code, answer = body()
    except BaseException:
        traceback.print_exc()
    watch.active = False
    seconds = time.process_time() - started
    sys.stdout.flush()
    sys.stderr.flush()
    found = {
        "code": code, "answer": answer, "seconds": seconds,
        "megabytes": (_status("VmHWM") - before) / 1e6,
        "writes": watch.writes, "runs": watch.runs,
    }  # fmt: skip
    told.write_text(json.dumps(found), encoding="utf-8")
    return 0


def _status(field: str) -> int:
    """Bytes of a line of ``/proc/self/status``."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


class _Watch:
    """An audit hook that notes what may not happen."""

    def __init__(self, inside: Path, given: Path) -> None:
        self.inside, self.given = (os.path.realpath(inside), os.path.realpath(given))
        self.active = False
        self.writes: list[str] = []
        self.runs: list[str] = []

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            self._opened(*arguments[:3])
        elif event in _WRITES:
            paths = arguments[:2] if "rename" in event or "move" in event else arguments[:1]
            for path in paths:
                self._written(event, path)
        elif event in _RUNS:
            self.runs.append(f"{event} {arguments[0]!r:.80}")
        elif event == "pickle.find_class" and str(arguments[0]).partition(".")[0] in _PICKLED:
            self.runs.append(f"unpickled {arguments[0]}.{arguments[1]}")
        elif event == "exec":
            name = str(getattr(arguments[0], "co_filename", ""))
            if name.startswith(f"{self.given}/"):
                self.runs.append(f"ran {name}")

    def _opened(self, path: object, mode: object = None, flags: object = 0) -> None:
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        if writes or (mode is None and isinstance(flags, int) and flags & _WRITING):
            self._written("open", path)

    def _written(self, event: str, path: object) -> None:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, (str, Path)):  # a file descriptor, of a file that is known
            return
        place = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if place.startswith(f"{self.inside}/") or place in (self.inside, os.devnull):
            return
        self.writes.append(f"{event} {place}")


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Keep libraries from starting threads, which a fork would lose."""
    import torch

    before = torch.get_num_threads()
    parallel = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if parallel is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = parallel


def listing(root: Path, without: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder, but for one part of it."""
    found: dict[str, tuple[int, int]] = {}
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if Path(folder, name) != without]
        for name in files:
            status = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (status.st_size, status.st_mtime_ns)
    return found
