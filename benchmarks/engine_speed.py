"""Int8 in each engine, on an encoder of half the multiply-accumulates.

    python -m benchmarks.engine_speed --json FILE

Encoders of DistilBERT's and MiniLM's shape with random weights; half of the products of heads and
neurons are cut (`shrink`), and `bench` times dense and half in turns in every engine that is
installed: 1 and 32 texts of 32 tokens. The ratios are over the dense model in torch fp32 (eager)
and over the dense model in the same engine's fp32. No data are needed.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from benchmarks._figures import Figure, parse_arguments, report
from benchmarks.latency import models
from hfcompress import BenchConfig, ShrinkConfig, bench, save_compressed, shrink
from hfcompress.benchmarking.config import ENGINES
from hfcompress.benchmarking.run import BenchResult
from hfcompress.report.bench import bench_table, environment_line
from hfcompress.utils import Progress, quiet_libraries

SHAPES = ((1, 32), (32, 32))
OVER_TORCH, OVER_OWN = 16, 7
SHRINK = ShrinkConfig(macs=0.5, score="magnitude", multiple_of=16)


class _Notes(Progress):
    def note(self, text: str) -> None:
        Console(stderr=True).print(text, markup=False)


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(__doc__, repeats="rounds, 20 by default")
    config = BenchConfig(
        batch=tuple(batch for batch, _ in SHAPES),
        length=(32,),
        engine=tuple(name for name in ENGINES if not name.startswith("torchao")),
        repeats=int(arguments.repeats or 20),
        seconds=120,
        memory=False,
    )
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, dense in models().items():
            half = copy.deepcopy(dense)
            shrink(half, SHRINK)
            paths = [Path(folder) / name, Path(folder) / f"{name}-half"]
            for model, path in zip((dense, half), paths, strict=True):
                save_compressed(model, path)
            result = bench([str(path) for path in paths], config, progress=_Notes())
            Console(width=140).print(environment_line(result.environment), markup=False)
            Console(width=140).print(bench_table(result.rows))
            figures += figures_of(name, result)
    report(figures, "engine_speed", arguments.json)


def figures_of(name: str, result: BenchResult) -> Iterator[Figure]:
    """Every int8 row of the half model, then the best of 32 x 32 tokens against the targets."""
    small = [
        row for row in result.rows if row["model"] == f"{name}-half" and "int8" in row["engine"]
    ]
    for row in small:
        where = f"{name}, half, {row['engine']}, {row['batch']}x{row['length']}"
        for key, over in (("speedup", "torch fp32"), ("same_runtime", "its own fp32")):
            ratio = row[key]
            note = f"{row['median']:.2f} ms, {row['bytes'] / 1e6:.1f} MB, {row['threads']} threads"
            yield Figure(
                f"{where}, over {over}",
                ratio["median"],
                "x",
                ratio["low"],
                ratio["high"],
                note=note,
            )
    if name != "DistilBERT":
        return
    full = [row for row in small if row["batch"] == SHAPES[-1][0]]
    for key, over, goal in (
        ("speedup", "torch fp32", OVER_TORCH),
        ("same_runtime", "its own fp32", OVER_OWN),
    ):
        best = max(full, key=lambda row: float(row[key]["median"]))
        ratio = best[key]
        yield Figure(
            f"{name}, half, best int8, 32x32, over {over}", ratio["median"], "x", ratio["low"],
            ratio["high"], f">= {goal}", best["engine"],
        )  # fmt: skip


if __name__ == "__main__":
    main()
