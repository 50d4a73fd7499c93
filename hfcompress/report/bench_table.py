"""The table of a bench for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from hfcompress.report.rows import Row

_TEXT = ("model", "engine")


def bench_table(rows: Sequence[Row]) -> Table:
    """One line for each model and engine, a section for each point of the grid.

    The fastest of each section is bold. Spreads are the middle half of the rounds.

    Args:
        rows: of `hfcompress.bench`.
    """
    memory = any("peak_rss" in row for row in rows)
    first = rows[0]["model"] if rows else ""
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption=escape(
            f"x torch, x engine: how many times faster than {first} in torch fp32, and in fp32 in "
            f"the same runtime"
            + ("; memory: peak of a fresh process with that engine alone" if memory else "")
        ),
        caption_justify="left",
    )
    titles = ["batch", "threads", *_TEXT, "ms", "spread", "per s", "x torch", "x engine", "MB"]
    for title in [*titles, *(["memory MB"] if memory else [])]:
        table.add_column(title, justify="left" if title in _TEXT else "right", no_wrap=True)
    for members in _sections(rows):
        fastest = min(members, key=lambda row: float(row["median"]))
        for row in members:
            table.add_row(
                *map(escape, _cells(row, memory)),
                style="bold" if row is fastest and len(members) > 1 else None,
            )
        table.add_section()
    return table


def environment_line(environment: Mapping[str, Any]) -> str:
    """The processor and what it can do with few bits, in one line."""
    able = [name for name in environment["abilities"] if _few_bits(name)]
    absent = [name for name in ("vnni", "amx", "bf16") if not any(name in item for item in able)]
    has = f"has {', '.join(able)}" if able else "has no instructions for int8 or bf16"
    lacks = f"; no {', no '.join(absent)}" if able and absent else ""
    return f"{environment['cpu']}, {environment['cores']} cores: {has}{lacks}"


def _few_bits(name: str) -> bool:
    return any(part in name for part in ("vnni", "amx", "bf16", "i8mm", "dot", "fp16"))


def _sections(rows: Sequence[Row]) -> list[list[Row]]:
    sections: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        sections.setdefault((row["threads"], row["batch"], row["length"]), []).append(row)
    return list(sections.values())


def _cells(row: Row, memory: bool) -> list[str]:
    length = row["length"]
    cells = [
        f"{row['batch']}" if length is None else f"{row['batch']}x{length}",
        str(row["threads"]),
        row["model"],
        row["engine"],
        f"{row['median']:.2f}",
        f"{row['low']:.2f} to {row['high']:.2f}",
        f"{row['examples_per_second']:.1f}",
        _ratio(row.get("speedup")),
        _ratio(row.get("same_runtime")),
        f"{row['bytes'] / 1e6:.1f}",
    ]
    if memory:
        cells.append(f"{row['peak_rss'] / 1e6:.0f}" if "peak_rss" in row else "")
    return cells


def _ratio(ratio: Mapping[str, float] | None) -> str:
    return "" if ratio is None else f"{ratio['median']:.2f}"
