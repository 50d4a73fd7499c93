"""The README's tables, made from benchmarks/results/ and from nothing else.

    python -m benchmarks.tables

Each table stands between ``<!-- results: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
_BLOCK = re.compile(r"<!-- results: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def render(text: str) -> str:
    """A text with every results block filled from its file."""
    return _BLOCK.sub(lambda match: _block(match[1]), text)


def update_readme() -> None:
    """Fill the README's blocks."""
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")


def _block(name: str) -> str:
    data = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    lines = ["| figure | measured | spread | target |", "|---|---:|---:|---:|"]
    lines += [_line(figure) for figure in data["figures"]]
    where = data["environment"]
    place = f"{where['cpu']}, {where['threads']} threads, torch {_torch(where)}"
    table = "\n".join(lines)
    return f"<!-- results: {name} -->\n{table}\n\n*{place}; `benchmarks/{name}.py`*\n<!-- end -->"


def _torch(where: dict[str, Any]) -> str:
    return str(where["packages"]["torch"])


def _line(figure: dict[str, Any]) -> str:
    spread = ""
    if figure["low"] is not None:
        spread = f"{figure['low']:.3g} to {figure['high']:.3g}"
    target = figure["target"] or ""
    if target:
        target += "" if figure["met"] else ", **not met**"
    return f"| {figure['name']} | {figure['value']:.4g} {figure['unit']} | {spread} | {target} |"


if __name__ == "__main__":
    update_readme()
