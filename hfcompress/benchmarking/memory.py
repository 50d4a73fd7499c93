"""Measure an engine's memory: the peak of a fresh process that loads nothing else.

The process of an engine that needs neither torch nor transformers imports neither, like a saved
folder's ``example.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hfcompress.benchmarking.subjects import Subject

Shape = tuple[int, int]
_MINUTES = 15


@dataclass(frozen=True)
class Memory:
    """Resident memory of one process in bytes.

    Attributes:
        before: with Python and the engine's library, without a model.
        peaks: the peak after each shape, small shapes first.
    """

    before: int
    peaks: dict[Shape, int]


def measure_memory(subject: Subject, shapes: Sequence[Shape], threads: int) -> Memory | str:
    """Return the memory of a fresh process that runs one batch of each shape.

    Args:
        subject: the model and its engine.
        shapes: batch and length; they run from small to large, because a peak never falls.
        threads: of the engine.

    Returns:
        The memory, or one sentence with the reason why it was not measured.
    """
    if not Path("/proc/self/status").is_file():
        return "memory is measured on Linux only"
    ordered = sorted(set(shapes), key=lambda shape: (shape[0] * shape[1], shape))
    task = {
        "engine": subject.engine,
        "source": subject.source,
        "dtype": subject.dtype,
        "threads": threads,
        "spec": asdict(subject.spec),
        "shapes": ordered,
    }
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(  # nosec B603 # our own module; the task is its standard input
        [sys.executable, "-m", "hfcompress.benchmarking.memory_worker"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * _MINUTES,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        return f"the memory of {subject.label} was not measured: {reason}"
    reported = json.loads(done.stdout.strip().splitlines()[-1])
    return Memory(reported["before"], dict(zip(ordered, reported["peaks"], strict=True)))
