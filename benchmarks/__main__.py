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

# In the order in which they run, the quick ones first; the option that takes SST-2's folder.
BENCHMARKS = {
    "import_time": "",
    "bad_input": "",
    "prune_time": "",
    "latency": "",
    "engine_speed": "",
    "sweep_throughput": "",
    "faults": "",
    "sweep_scale": "",
    "sparse_inference": "",
    "distillation_step": "",
    "published_table": "--data",
    "oneshot_quality": "--data",
    "oneshot_levers": "--data",
    "distillation_quality": "--data",
    "structured_quality": "--data",
    "quantize_quality": "--data",
    "vision_quality": "",
    "course": "",
    "course_phone": "--sentences",
    "course_studies": "",
    "course_device_studies": "",
    "pipeline": "--data",
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
            command += [BENCHMARKS[name], arguments.data]
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
