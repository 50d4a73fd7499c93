"""The picture of a bench: a panel for each batch and length, a bar for each model and engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from hfcompress.report.plotting import GREY, PALETTE, new_figure, png_bytes
from hfcompress.report.rows import Row

_ACROSS = 2
_RUNTIMES = ("torch", "onnxruntime", "openvino")


def draw_bench(rows: Sequence[Row]) -> bytes:
    """The picture of `bench_figure` as PNG."""
    return png_bytes(bench_figure(rows))


def bench_figure(rows: Sequence[Row]) -> Figure:
    """Latency by model and engine, the shorter the better, a panel for each point of the grid.

    A bar is the median, its whisker the middle half of the rounds; beside it stand milliseconds
    and how many times faster it is than the first model in torch fp32. Full colour is fp32, the
    lighter bars compute in fewer bits.

    Args:
        rows: of `hfcompress.bench`.
    """
    panels: dict[tuple[int, int, int | None], list[Row]] = {}
    for row in rows:
        panels.setdefault((row["threads"], row["batch"], row["length"]), []).append(row)
    bars = max((len(members) for members in panels.values()), default=1)
    across = min(_ACROSS, max(len(panels), 1))
    down = -(-len(panels) // across) or 1
    figure = new_figure(2.2 + 4.6 * across, 0.7 + down * (0.75 + 0.29 * bars))
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (place, members) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, place, members)
    handles = [
        Patch(color=_colour(f"{name}-fp32", name), label=name)
        for name in _RUNTIMES
        if any(row["runtime"] == name for row in rows)
    ]
    if handles:
        handles.append(Patch(color=_lighter(GREY), label="lighter: fewer bits than fp32"))
        handles.append(Patch(alpha=0, label=f"x: over {rows[0]['model']} in torch fp32"))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=3 if across == 1 else 5,
            frameon=False, fontsize=9,
        )  # fmt: skip
    return figure


def _panel(axes: Axes, place: tuple[int, int, int | None], rows: Sequence[Row]) -> None:
    threads, batch, length = place
    several = len({row["model"] for row in rows}) > 1
    names = [f"{row['model']}  {row['engine']}" if several else row["engine"] for row in rows]
    longest = max(row["median"] for row in rows)
    for index, row in enumerate(rows):
        middle = row["median"]
        whisker = [[max(middle - row["low"], 0)], [max(row["high"] - middle, 0)]]
        axes.barh(
            index, middle, height=0.72, color=_colour(row["engine"], row["runtime"]),
            xerr=whisker,
            error_kw={"ecolor": GREY, "elinewidth": 1.2, "capsize": 2},
        )  # fmt: skip
        end = max(row["high"], middle) + 0.015 * longest
        axes.text(end, index, _said(row), va="center", fontsize=8.5, color="#202124")
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.32 * max(max(row["high"], row["median"]) for row in rows))
    axes.set_xlabel("milliseconds a batch", fontsize=9)
    what = f"{batch} image{'s' * (batch > 1)}" if length is None else f"{batch} x {length} tokens"
    axes.set_title(
        f"{what}, {threads} thread{'s' * (threads > 1)}", loc="left", fontsize=10.5, weight="bold"
    )
    axes.grid(axis="x", color="#DADCE0", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for index in range(1, len(rows)):
        if rows[index]["model"] != rows[index - 1]["model"]:
            axes.axhline(index - 0.5, color="#DADCE0", linewidth=0.9)


def _said(row: Row) -> str:
    ratio = row.get("speedup")
    text = f"{row['median']:.3g} ms" if row["median"] < 100 else f"{row['median']:.0f} ms"
    return text if ratio is None else f"{text}, {ratio['median']:.1f} x"


def _colour(engine: str, runtime: str) -> tuple[float, float, float]:
    place = _RUNTIMES.index(runtime) if runtime in _RUNTIMES else len(_RUNTIMES)
    full = PALETTE[place]
    return to_rgb(full) if engine.endswith("fp32") else _lighter(full)


def _lighter(colour: str) -> tuple[float, float, float]:
    """Mixed with white; a transparent bar would show the grid through it."""
    red, green, blue = (1 - 0.55 * (1 - part) for part in to_rgb(colour))
    return red, green, blue


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
