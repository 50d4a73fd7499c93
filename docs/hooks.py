"""Fills in the list of public names when mkdocs builds docs/api.md."""

from __future__ import annotations

import ast
from pathlib import Path

_MARK = "<!-- public names -->"
_PACKAGE = Path(__file__).resolve().parents[1] / "hfcompress"
_TITLES = {
    "benchmarking": "Bench and check",
    "distillation": "Distill",
    "pruning": "Prune",
    "quantization": "Quantize and deploy",
    "search": "Targets and certificates",
    "shrinking": "Shrink",
    "sweep": "Sweeps and pipelines",
}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page's text with the mark replaced; mkdocs calls this for each page."""
    return markdown.replace(_MARK, directives()) if _MARK in markdown else markdown


def directives() -> str:
    """A heading for each room and a directive of mkdocstrings for each public name."""
    lines, room = [], ""
    for module, names in public_names().items():
        if (first := module.split(".")[0]) != room:
            room = first
            lines.append(f"## {_TITLES.get(room, room.replace('_', ' ').capitalize())}\n")
        lines += [f"::: hfcompress.{module}.{name}\n" for name in names]
    return "\n".join(lines)


def public_names() -> dict[str, tuple[str, ...]]:
    """The table of ``hfcompress/__init__.py``, read without importing torch."""
    tree = ast.parse((_PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_PUBLIC":
            assert node.value is not None
            table: dict[str, tuple[str, ...]] = ast.literal_eval(node.value)
            return table
    raise LookupError("hfcompress/__init__.py has no table _PUBLIC")
