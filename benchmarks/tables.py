"""The tables of results.md and studies.md in docs/, made from benchmarks/results/ and nothing else.

    python -m benchmarks.tables

Each table is between ``<!-- results: NAME -->`` and ``<!-- end -->``. Figures named
"what, 50%, unit" form a separate table with a column for each percentage or pattern.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "docs" / "results.md", ROOT / "docs" / "studies.md")
FigureRow = dict[str, Any]
"""One figure as benchmarks/results/*.json holds it: name, value, unit, low, high, target, met."""
_CELL = re.compile(r"(?P<row>.+), (?P<column>\d+%|\d+:\d+), (?P<unit>\w+)")
_BLOCK = re.compile(r"<!-- results: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def render(text: str) -> str:
    """Return a text with every results block filled from its file."""
    return _BLOCK.sub(lambda match: _block(match[1]), text)


def update_pages() -> None:
    """Rewrite the results blocks of every page."""
    for page in PAGES:
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")


def _block(name: str) -> str:
    data = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    cells = [figure for figure in data["figures"] if _CELL.fullmatch(figure["name"])]
    others = [figure for figure in data["figures"] if figure not in cells]
    parts = [_matrix(cells)] if cells else []
    if others:
        lines = ["| figure | measured | spread | target |", "|---|---:|---:|---:|"]
        parts.append("\n".join(lines + [_line(figure) for figure in others]))
    table = "\n\n".join(parts)
    where = data["environment"]
    count = where["threads"]
    place = f"{where['cpu']}, {count} thread{'s' * (count != 1)}, torch {_torch(where)}"
    return f"<!-- results: {name} -->\n{table}\n\n*{place}; `benchmarks/{name}.py`*\n<!-- end -->"


def _matrix(figures: list[FigureRow]) -> str:
    """Return a table with a row per name and a column per sparsity or pattern."""
    names = [match for figure in figures if (match := _CELL.fullmatch(figure["name"]))]
    rows = list(dict.fromkeys(match["row"] for match in names))
    columns = list(dict.fromkeys(match["column"] for match in names))
    found = {(match["row"], match["column"]): f for match, f in zip(names, figures, strict=True)}
    lines = [f"| {names[0]['unit']} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [_cell(found.get((row, column))) for column in columns]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figure: FigureRow | None) -> str:
    if figure is None:
        return ""
    text = f"{figure['value']:.4g}"
    if figure["low"] is not None and figure["low"] != figure["high"]:
        text += f" ({figure['low'] + 0:.2f} to {figure['high'] + 0:.2f})"
    if figure["target"]:
        text = f"**{text}**; {figure['target']}" + ("" if figure["met"] else " not met")
    return text


def _torch(where: dict[str, Any]) -> str:
    return str(where["packages"]["torch"])


def _line(figure: FigureRow) -> str:
    spread = ""
    if figure["low"] is not None:
        spread = f"{figure['low']:.3g} to {figure['high']:.3g}"
    target = figure["target"] or ""
    if target:
        target += "" if figure["met"] else ", **not met**"
    return f"| {figure['name']} | {figure['value']:.4g} {figure['unit']} | {spread} | {target} |"


if __name__ == "__main__":
    update_pages()
