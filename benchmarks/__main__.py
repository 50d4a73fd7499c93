"""Run all benchmarks, write benchmarks/results/, and list the figures that are not met.

    python -m benchmarks [--data FOLDER] [NAME ...]

FOLDER holds the SST-2 sentences as train.tsv and dev.tsv; the benchmarks that need them take the
hub's copy where it is not given. A benchmark that fails keeps its last results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.tables import RESULTS, update_pages

# In the order in which they run, the quick ones first; True where SST-2 is read.
BENCHMARKS = {
    "import_time": False,
    "bad_input": False,
    "prune_time": False,
    "latency": False,
    "engine_speed": False,
    "sweep_throughput": False,
    "faults": False,
    "sweep_scale": False,
    "sparse_inference": False,
    "distillation_step": False,
    "published_table": True,
    "oneshot_quality": True,
    "oneshot_levers": True,
    "distillation_quality": True,
    "structured_quality": True,
    "quantize_quality": True,
    "vision_quality": False,
    "course": False,
    "course_studies": False,
    "pipeline": True,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which; default: all")
    parser.add_argument("--data", help="folder with SST-2 as train.tsv and dev.tsv")
    arguments = parser.parse_args()
    console = Console()
    failed = []
    for name in arguments.names or BENCHMARKS:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += ["--json", str(RESULTS / f"{name}.json")]
        if arguments.data and BENCHMARKS[name]:
            command += ["--data", arguments.data]
        console.rule(name)
        if subprocess.run(command, check=False).returncode:  # nosec B603 # our own modules
            failed.append(name)
    update_pages()
    for name in failed:
        console.print(f"[red]{name} failed; its last results stand")
    missed = not_met()
    for name, figure in missed:
        console.print(
            f"not met: {name}: {figure['name']} is {figure['value']:.4g} {figure['unit']}, "
            f"target {figure['target']}",
            markup=False,
        )
    if not missed:
        console.print("every figure with a target is met")
    return 1 if failed else 0


def not_met() -> list[tuple[str, dict[str, Any]]]:
    """The figures of all results that miss their target, with their benchmark's name."""
    missed = []
    for name in BENCHMARKS:
        path = Path(RESULTS / f"{name}.json")
        if path.is_file():
            figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
            missed += [(name, figure) for figure in figures if figure["met"] is False]
    return missed


if __name__ == "__main__":
    sys.exit(main())
