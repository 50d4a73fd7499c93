"""An engine's memory, honestly: the peak of a fresh process that loads it and nothing else.

Neither torch nor transformers are in the process of an engine that needs neither, as they are
not where a deployable folder's ``example.py`` runs.
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
        before: with Python and the engine's library loaded, and no model.
        peaks: the highest until then, after each shape, small shapes first.
    """

    before: int
    peaks: dict[Shape, int]


def measure_memory(subject: Subject, shapes: Sequence[Shape], threads: int) -> Memory | str:
    """Run one batch of each shape in a fresh process.

    Args:
        subject: which model in which engine.
        shapes: batch and length; they run from small to large, since a peak never falls.
        threads: of the engine.

    Returns:
        What was measured, or one sentence that says why it cannot be.
    """
    if not Path("/proc/self/status").is_file():
        return "memory is measured on Linux alone"
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
    done = subprocess.run(
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
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return Memory(said["before"], dict(zip(ordered, said["peaks"], strict=True)))
