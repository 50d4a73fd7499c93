"""Processor time that importing hfcompress and starting its command line take.

    python -m benchmarks.import_time [--json FILE]

Each statement runs in fresh processes; user and system time are counted, not the wall clock, so
that other work on the machine hardly changes the figures.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

from benchmarks._figures import parse_arguments, report, spread

REPETITIONS = 5
_MAIN = "from hfcompress.cli.commands import main; main"
# Name -> statement and the most processor seconds that it may take.
LIMITS = {
    "import hfcompress": ("import hfcompress", 0.1),
    "hfcompress --help": (f"{_MAIN}(['--help'])", 0.4),
    "hfcompress --version": (f"{_MAIN}(['--version'])", 0.4),
    "hfcompress recipes": (f"{_MAIN}(['recipes'])", 0.4),
}
# The most that importing one name may take, as a multiple of `import torch`.
TIMES_TORCH = {"prune": 1.5, "shrink": 1.5, "PruningConfig": 1.5, "DistillationTrainer": None}


def main() -> None:
    arguments = parse_arguments(__doc__)
    figures = [
        spread(name, processor_seconds(statement), "s", f"<= {limit}")
        for name, (statement, limit) in LIMITS.items()
    ]
    torch = processor_seconds("import torch")
    figures.append(spread("import torch", torch, "s"))
    for name, limit in TIMES_TORCH.items():
        ratios = [
            value / statistics.median(torch)
            for value in processor_seconds(f"from hfcompress import {name}")
        ]
        target = None if limit is None else f"<= {limit}"
        figures.append(spread(f"from hfcompress import {name}", ratios, "x torch", target))
    report(figures, "import_time", arguments.json)


def processor_seconds(statement: str) -> list[float]:
    """User and system seconds of fresh processes that run a statement."""
    times = []
    for _ in range(REPETITIONS + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", statement]
        subprocess.run(command, check=True, capture_output=True)  # nosec B603 # our own statement
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return times[1:]  # the first process fills the file cache


if __name__ == "__main__":
    main()
