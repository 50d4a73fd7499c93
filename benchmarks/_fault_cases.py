"""What is run while faults come: a tiny model, sentences, and a recipe for each kind of work."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks._fault_processes import Place
from hfcompress.sweep.results import ROWS, RunDirectory
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import sentence, tiny_tokenizer

# What differs between two undisturbed runs, too.
_TIMES = {"seconds", "timings", "latency"}
_TRAINING = {"batch_size": 16, "learning_rate": 1e-3}
_TORCH = {"quantize": {"backend": "torch"}}


@dataclass(frozen=True)
class Case:
    """One kind of work.

    Attributes:
        name: as the table calls it.
        steps: of its recipe.
        grid: of its recipe.
        workers: trials that run side by side.
        more: further fields of its recipe.
        command: arguments of another command than ``run``.
    """

    name: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    workers: int = 1
    more: dict[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()

    def arguments(self, sources: Path, place: Place, *options: str) -> list[str]:
        """The command line that runs it; options may be ``--retry-failed`` and ``--wait``."""
        output = ["--output", str(place.output)]
        if self.command:
            wait = [option for option in options if option == "--wait"]
            return [*self.command, *output, *wait]
        path = sources / f"{self.name}.yaml"
        if not path.exists():
            path.write_text(yaml.safe_dump(self._recipe(sources)))
        return ["run", str(path), *output, "--workers", str(self.workers), *options]

    def _recipe(self, sources: Path) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": str(sources / "model"),
            "data": {"path": str(sources / "data.tsv"), "eval_fraction": 0.5},
            "steps": self.steps,
            "grid": self.grid,
            **self.more,
        }


def make_cases(sources: Path) -> dict[str, Case]:
    """Write model and sentences; the cases that use them, by name."""
    tiny_bert().save_pretrained(sources / "model")
    tiny_tokenizer().save_pretrained(sources / "model")
    generator = random.Random(0)
    lines = [f"{sentence(generator, index % 2 == 1)}\t{index % 2}" for index in range(80)]
    (sources / "data.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    short = {"finetune": {**_TRAINING, "max_steps": 3}}
    student = {
        **_TRAINING, "epochs": 3, "student": {"layers": 1}, "cache": True,
        "distillation": {"hidden_weight": 1.0},
    }  # fmt: skip
    half = {"shrink": {"macs": 0.6, "calibration_rows": 16, "multiple_of": 1}}
    distill = {"distill": {**_TRAINING, "epochs": 2}}
    sparsities = {"prune.sparsity": [0, 0.2, 0.4, 0.6, 0.8]}
    # One layer: pictures of more take longer than all else.
    prune = {"prune": {"sparsity": 0.5, "targets": ["*0.attention.self.query"]}}
    cases = [
        Case("workers", [short, prune], sparsities, workers=2),
        Case(
            "finetune", [{"finetune": {**_TRAINING, "epochs": 4}}],
            {"finetune.learning_rate": [1e-3, 3e-3]},
        ),
        Case("distill", [{"distill": student}], {"distill.distillation.temperature": [1.0, 2.0]}),
        Case("shrink", [half, distill], {"shrink.macs": [0.6, 0.8]}),
        Case(
            "quantize", [short, _TORCH], {"quantize.per_channel": [True, False]},
            more={"save_models": True},
        ),
        Case(
            "pipeline", [short, {"vocabulary": {}}, half, distill, prune, _TORCH],
            more={"save_models": True, "measure": {"every_step": True}},
        ),
        Case("compress", command=(
            "compress", str(sources / "model"), "--data", str(sources / "data.tsv"),
            "--max-size", "100KB", "--max-drop", "3", "--backend", "torch", "--length", "8",
        )),
    ]  # fmt: skip
    return {case.name: case for case in cases}


def rows_of(place: Place) -> dict[str, str]:
    """The rows of a run's folder without times, as text by hash."""
    rows = {}
    for row in RunDirectory(place.output).rows():
        plain = {key: value for key, value in row.items() if key not in _TIMES}
        plain["steps"] = [
            {key: value for key, value in step.items() if key not in _TIMES}
            for step in row["steps"]
        ]
        rows[str(row["hash"])] = json.dumps(plain, sort_keys=True)
    return rows


def compare(place: Place, expected: dict[str, str]) -> dict[str, int]:
    """How many rows are lost, doubled or wrong beside an undisturbed run's."""
    rows = rows_of(place)
    path = place.output / ROWS
    lines = len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0
    return {
        "rows lost": len(expected.keys() - rows.keys()),
        "rows doubled": max(0, lines - len(rows)) + len(rows.keys() - expected.keys()),
        "rows wrong": sum(rows[key] != expected[key] for key in rows.keys() & expected.keys()),
    }


def difference(place: Place, expected: dict[str, str]) -> str:
    """Where the first wrong row differs."""
    for key, text in rows_of(place).items():
        if text == expected.get(key, text):
            continue
        row, right = json.loads(text), json.loads(expected[key])
        names = [name for name in right if row.get(name) != right[name]]
        return "; ".join(
            f"{name}: {row.get(name)!r:.200}, not {right[name]!r:.200}" for name in names
        )
    return "no row differs"
