"""One fault after the other: what it does to a run, and whether the same command finishes it."""

from __future__ import annotations

import copy
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._fault_aims import KINDS, Aim
from benchmarks._fault_cases import Case, compare, difference, make_cases, rows_of
from benchmarks._fault_processes import Place, Run, import_all, start, write_modules

CHECKS = (
    "rows lost", "rows doubled", "rows wrong", "cannot go on", "processes left",
    "temporary files left", "tracebacks",
)  # fmt: skip
# Seconds after which no process of a run that was killed may be alive.
GRACE = 5.0
_AIMED_AT = {
    "checkpoint": ("finetune", "distill"),
    "cache entry": ("finetune", "distill", "shrink"),
    "row": ("finetune", "distill", "shrink", "quantize", "pipeline", "compress"),
    "page": ("finetune", "distill", "shrink", "quantize", "pipeline", "compress"),
    "quantized folder": ("quantize", "pipeline", "compress"),
}


@dataclass(frozen=True)
class Fault:
    """One fault: its kind, what it hits, and the seed of all that is drawn."""

    kind: str
    target: str
    seed: str

    @property
    def scenario(self) -> str:
        """As the table calls it."""
        return f"{self.kind}: {self.target}"


@dataclass
class Result:
    """What a fault did; problems by `CHECKS`."""

    scenario: str
    problems: Counter[str] = field(default_factory=Counter)
    detail: str = ""


@dataclass(frozen=True)
class Undisturbed:
    """A run without faults: its rows, its seconds, and how often it touched files, by kind."""

    rows: dict[str, str]
    seconds: float
    touches: dict[str, int]


Scenario = Callable[["Bench", str, random.Random, "Result"], None]


class Skipped(Exception):
    """The machine does not let this fault happen."""


class Bench:
    """Runs every scenario below one folder.

    Args:
        root: made already; the caller removes it.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        self.sources = root / "sources"
        self.cases: dict[str, Case] = {}
        self._undisturbed: dict[str, Undisturbed] = {}

    def prepare(self) -> None:
        """Write the sources and import what the runs import."""
        self.sources.mkdir()
        self.cases = make_cases(self.sources)
        modules = self.root / "modules.json"
        for name in ("pipeline", "compress"):
            place = self.place()
            run = start(self.arguments(name, place), place, write_modules(modules))
            assert run.wait() in (0, 1), run.printed
            import_all(modules)

    def place(self, shared_cache: Path | None = None) -> Place:
        """A new place."""
        self.count += 1
        return Place(self.root / f"{self.count:04d}", shared_cache).made()

    def arguments(self, case: str, place: Place, *options: str) -> list[str]:
        return self.cases[case].arguments(self.sources, place, *options)

    def undisturbed(self, case: str) -> Undisturbed:
        """What a case gives without faults; measured once, after a run that warms up."""
        if case not in self._undisturbed:
            place = self.place()
            counts = {kind: self.root / f"count {kind}" for kind in KINDS}
            for path in counts.values():
                path.write_text("0")
            aims = [Aim(kind, None, 1.0, path) for kind, path in counts.items()]

            def hook() -> None:
                forked_workers()
                for aim in aims:
                    aim()

            run = start(self.arguments(case, place), place, hook)
            code = run.wait()
            assert code in (0, 1), f"{case} without faults: exit code {code}: {run.printed}"
            seconds = time.monotonic() - run.started
            touches = {kind: int(path.read_text()) for kind, path in counts.items()}
            self._undisturbed[case] = Undisturbed(rows_of(place), seconds, touches)
            shutil.rmtree(place.root)
        return self._undisturbed[case]

    def beside(self, name: str) -> Bench:
        """A bench that works in a folder of its own and knows what this one has measured."""
        other = copy.copy(self)
        other.root, other.count = self.root / name, 0
        other.root.mkdir()
        return other

    def suffer(self, fault: Fault, scenario: Scenario) -> Result:
        """Let one fault happen and see what is left."""
        result, draw, first = Result(fault.scenario), random.Random(fault.seed), self.count + 1
        try:
            scenario(self, fault.target, draw, result)
        except Skipped as reason:
            result.detail = f"skipped: {reason}"
        unmount_below(self.root)
        if not result.problems:
            for number in range(first, self.count + 1):
                shutil.rmtree(self.root / f"{number:04d}", ignore_errors=True)
        return result

    # --- what every scenario ends with ----------------------------------------------------------

    def finish(self, case: str, place: Place, result: Result) -> None:
        """Run the command again and compare with an undisturbed run."""
        options = () if case == "compress" else ("--retry-failed",)
        run = start(self.arguments(case, place, *options), place, forked_workers)
        code = run.wait()
        self.judge(case, place, run, code, result)

    def judge(self, case: str, place: Place, run: Run, code: int | None, result: Result) -> None:
        """Compare a run that has finished with an undisturbed one."""
        expected = self.undisturbed(case)
        accepted = (0, 1) if case == "compress" else (0,)  # 1: nothing met its target
        if code not in accepted:
            result.problems["cannot go on"] += 1
            result.detail = f"exit code {code}: {run.printed[-300:]}"
        self.check_printed(run, result)
        self.check_processes(run, result)
        for check, count in compare(place, expected.rows).items():
            if count:
                result.problems[check] += count
                result.detail = f"{difference(place, expected.rows)}; see {place.root}"
        left = place.leftovers()
        if left:
            result.problems["temporary files left"] += len(left)
            result.detail = ", ".join(left[:4])

    def check_printed(self, run: Run, result: Result) -> None:
        if "Traceback" in run.printed:
            result.problems["tracebacks"] += 1
            result.detail = run.printed[-400:]

    def check_processes(self, run: Run, result: Result, seconds: float = GRACE) -> None:
        end = time.monotonic() + seconds
        while (left := run.members()) and time.monotonic() < end:
            time.sleep(0.05)
        if left:
            result.problems["processes left"] += len(left)
            result.detail = f"{len(left)} processes after {seconds} s"
        run.end()

    # --- kills ----------------------------------------------------------------------------------

    def kill(self, target: str, draw: random.Random, result: Result) -> None:
        case = {"parent": "workers", "worker": "workers"}.get(target, target)
        moment = draw.uniform(0.0, self.undisturbed(case).seconds)
        # As a user's run every fifth time; the others do not pay the imports of each worker.
        hook = None if target in ("parent", "worker") and draw.random() < 0.2 else forked_workers
        place = self.place()
        run = start(self.arguments(case, place), place, hook)
        if target == "worker":
            self._kill_worker(run, moment, draw)
            if run.wait() != 0:
                result.problems["cannot go on"] += 1
                result.detail = run.printed[-300:]
            self.check_printed(run, result)
        else:
            run.wait(moment)
            run.signal(signal.SIGKILL)
            run.wait(10)
        self.check_processes(run, result)
        self.finish(case, place, result)

    def _kill_worker(self, run: Run, moment: float, draw: random.Random) -> None:
        run.wait(moment)
        while run.wait(0) is None:  # none yet, perhaps
            workers = [pid for pid in run.members() if is_worker(pid, run.pid)]
            if workers:
                os.kill(draw.choice(workers), signal.SIGKILL)
                return
            time.sleep(0.01)

    def aim(self, kind: str, draw: random.Random, result: Result) -> None:
        case = draw.choice(_AIMED_AT[kind])
        touches = self.undisturbed(case).touches[kind]
        aim = Aim(kind, draw.randint(1, max(1, touches)), draw.random())
        place = self.place()
        run = start(self.arguments(case, place), place, aim)
        run.wait()
        self.check_processes(run, result)
        self.finish(case, place, result)

    def stop(self, name: str, draw: random.Random, result: Result) -> None:
        """A signal that asks a run with workers to end."""
        number = getattr(signal, name)
        moment = draw.uniform(0.0, self.undisturbed("workers").seconds)
        place = self.place()
        run = start(self.arguments("workers", place), place)
        run.wait(moment)
        run.signal(number)
        sent = time.monotonic()
        code = run.wait(30)
        seconds = time.monotonic() - sent
        result.detail = f"exit code {code} after {seconds:.1f} s"
        if code not in (0, 128 + number) or (code and "goes on where it was" not in run.printed):
            result.problems["cannot go on"] += 1
            result.detail += f": {run.printed[-200:]}"
        self.check_printed(run, result)
        self.check_processes(run, result)
        self.finish("workers", place, result)


def forked_workers() -> None:
    """Let worker processes be forked from a process that has imported everything.

    Like a spawned process, none ever has its parent's handler of SIGTERM.
    """
    context = multiprocessing.get_context("fork")
    held = {signal.SIGTERM}

    def let_go() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)

    def as_if_spawned() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        let_go()

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, held),
        after_in_parent=let_go,
        after_in_child=as_if_spawned,
    )
    multiprocessing.get_context = lambda method=None: context  # type: ignore[assignment]


def is_worker(pid: int, parent: int) -> bool:
    """Whether a process is a worker of another one, not its resource tracker."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
    return int(stat.rpartition(")")[2].split()[1]) == parent and "resource_tracker" not in command


def mount(folder: Path, kind: str, options: str = "") -> None:
    """Mount a tmpfs at a folder, or the folder on itself.

    Raises:
        Skipped: this user may not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words: Sequence[str] = ["--bind", str(folder), str(folder)]
    if kind == "tmpfs":
        words = ["-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or _call("mount", *words):
        raise Skipped("this user may not mount")


def remount(*options: str) -> None:
    """Change how a folder is mounted."""
    assert _call("mount", *options) == 0, f"mount {options} failed"


def unmount_below(root: Path) -> None:
    """Unmount everything below a folder."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    for point in [line.split()[1] for line in mounts if line.split()[1].startswith(f"{root}/")]:
        _call("umount", "--lazy", point)


def _call(*words: str) -> int:
    """The exit code of a program of this machine."""
    found = subprocess.run(words, capture_output=True, check=False)  # nosec B603
    return found.returncode
