"""Kills, full disks and other faults: what a run loses, and whether it goes on.

    python -m benchmarks.faults --json benchmarks/results/faults.json
    python -m benchmarks.faults --kills 20 --aimed 10 --only finetune --seed 1

300 runs of tiny models get SIGKILL at a random moment: the parent of two workers, one of its
workers, and runs that fine-tune, distill, shrink, quantize, carry out a pipeline, or search
(`compress`). 60 more end while they write: before a file is opened or renamed, or with a part of it
written. Then come full disks, read-only folders, few open files, a full /dev/shm, a clock that is
set back, flipped bits, signals that end a run, and two and four runs at once in one folder and with
one cache.

After each fault the same command runs again and must finish: every row of an undisturbed run once,
with the same metric, weights and training loss; no process of the killed run is alive after five
seconds; no temporary file is left. Needs Linux; disks that fill up need the right to mount.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from benchmarks._fault_aims import KINDS
from benchmarks._fault_conditions import OTHERS, SCENARIOS
from benchmarks._fault_scenarios import CHECKS, Bench, Fault, Result, unmount_below
from benchmarks._figures import Figure, report
from hfcompress.utils import quiet_libraries

RANDOM = ("parent", "worker", "finetune", "distill", "shrink", "quantize", "pipeline", "compress")


@dataclass
class Table:
    """Results by scenario."""

    faults: Counter[str] = field(default_factory=Counter)
    found: dict[str, Counter[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def problems(self) -> int:
        """How many things went wrong."""
        return sum(sum(found.values()) for found in self.found.values())

    def add(self, result: Result) -> None:
        """Count one fault."""
        name = result.scenario
        self.faults[name] += 1
        self.found.setdefault(name, Counter()).update(result.problems)
        if result.detail and len(self.notes.setdefault(name, [])) < 3:
            self.notes[name].append(result.detail)

    def figures(self) -> Iterator[Figure]:
        """A figure for each scenario, then the sums."""
        for name, count in self.faults.items():
            bad = sum(self.found[name].values())
            note = "; ".join(self.notes.get(name, ()))
            yield Figure(
                f"{name}: {count} faults, what went wrong", bad, "", None, None, "<= 0", note
            )
        for check in CHECKS:
            total = sum(found[check] for found in self.found.values())
            yield Figure(f"all {self.faults.total()} faults: {check}", total, "", target="<= 0")


def planned(kills: int, aimed: int, seed: int) -> Iterator[Fault]:
    """The faults in the order in which they come."""
    for number in range(kills):
        yield Fault("kill", RANDOM[number % len(RANDOM)], f"{seed} kill {number}")
    kinds = list(KINDS)
    for number in range(aimed):
        yield Fault("aim", kinds[number % len(kinds)], f"{seed} aim {number}")
    for kind, names in OTHERS.items():
        for name in names:
            yield Fault(kind, name, f"{seed} {kind} {name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=300, help="at random moments")
    parser.add_argument("--aimed", type=int, default=60, help="at moments of writing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="faults that happen side by side")
    parser.add_argument("--only", help="scenarios whose name contains this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    quiet_libraries()
    table, started = Table(), time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    faults = [
        fault for fault in planned(arguments.kills, arguments.aimed, arguments.seed)
        if arguments.only is None or arguments.only in fault.scenario
    ]  # fmt: skip
    try:
        for number, result in enumerate(suffer_all(faults, root, arguments.jobs), 1):
            table.add(result)
            state = json.dumps(dict(result.problems)) if result.problems else "ok"
            print(
                f"{number:4d}/{len(faults)} {time.monotonic() - started:6.0f} s  "
                f"{result.scenario:28s} {state} {result.detail}", flush=True,
            )  # fmt: skip
    finally:
        unmount_below(root)
        if not table.problems:
            shutil.rmtree(root, ignore_errors=True)
    report(list(table.figures()), "faults", arguments.json)


def suffer_all(faults: Sequence[Fault], root: Path, jobs: int) -> Iterator[Result]:
    """The results of faults as they come; each job is a process with every ``jobs``-th fault."""
    bench = Bench(root)
    bench.prepare()
    gc.collect()
    gc.freeze()
    readers = []
    for job in range(jobs):
        reader, writer = multiprocessing.Pipe(duplex=False)
        if os.fork() == 0:
            try:
                own = bench.beside(f"job{job}")
                for fault in faults[job::jobs]:
                    writer.send(own.suffer(fault, SCENARIOS[fault.kind]))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        writer.close()
        readers.append(reader)
    while readers:
        for ready in wait(readers):
            assert isinstance(ready, Connection)
            try:
                yield ready.recv()
            except EOFError:
                readers.remove(ready)


if __name__ == "__main__":
    main()
