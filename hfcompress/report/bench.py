"""The result of a bench as a table and as bars: latency by model, engine and input shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from hfcompress.report.plotting import (
    GREY,
    GRID_COLOUR,
    INK,
    PALETTE,
    new_figure,
    png_bytes,
    style_bar_axes,
)
from hfcompress.report.rows import Row
from hfcompress.report.table import plain_text

_MAX_COLUMNS = 2
_RUNTIMES = ("torch", "onnxruntime", "openvino")
_TEXT_COLUMNS = ("model", "engine")

Place = tuple[int, int, int | None]
"""Threads, batch and length; the length of images is None."""


def draw_bench(rows: Sequence[Row]) -> bytes:
    """`bench_figure` as PNG."""
    return png_bytes(bench_figure(rows))


def bench_figure(rows: Sequence[Row]) -> Figure:
    """Latency by model and engine, one panel per point of the grid; shorter is better.

    A bar is the median, its whisker the interquartile range over the rounds, its text the median
    and the speedup over the first model in torch fp32. Full colour is fp32, lighter bars compute
    in fewer bits.

    Args:
        rows: of `hfcompress.bench`.
    """
    panels = _by_place(rows)
    bars = max((len(members) for members in panels.values()), default=1)
    columns = min(_MAX_COLUMNS, max(len(panels), 1))
    lines = -(-len(panels) // columns) or 1
    figure = new_figure(2.2 + 4.6 * columns, 0.7 + lines * (0.75 + 0.29 * bars))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (place, members) in zip(grid.flat, panels.items(), strict=False):
        _draw_panel(axes, place, members)
    handles = [
        Patch(color=_colour(f"{name}-fp32", name), label=name)
        for name in _RUNTIMES
        if any(row["runtime"] == name for row in rows)
    ]
    if handles:
        handles.append(Patch(color=_lighter(GREY), label="lighter: fewer bits than fp32"))
        handles.append(Patch(alpha=0, label=f"x: over {rows[0]['model']} in torch fp32"))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=3 if columns == 1 else 5,
            frameon=False, fontsize=9,
        )  # fmt: skip
    return figure


def bench_table(rows: Sequence[Row]) -> Table:
    """One line per model and engine, one section per point of the grid.

    The fastest of each section is bold. Spreads are interquartile ranges over the rounds.

    Args:
        rows: of `hfcompress.bench`.
    """
    memory = any("peak_rss" in row for row in rows)
    first = rows[0]["model"] if rows else ""
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption=plain_text(
            f"x torch, x engine: speedup over {first} in torch fp32, and over {first} in fp32 in "
            f"the same runtime"
            + ("; memory: peak of a new process with this engine only" if memory else ""),
            "table.caption",
        ),
        caption_justify="left",
    )
    titles = [
        "batch",
        "threads",
        *_TEXT_COLUMNS,
        "ms",
        "spread",
        "per s",
        "x torch",
        "x engine",
        "MB",
    ]
    for title in [*titles, *(["memory MB"] if memory else [])]:
        table.add_column(title, justify="left" if title in _TEXT_COLUMNS else "right", no_wrap=True)
    for members in _by_place(rows).values():
        fastest = min(members, key=lambda row: float(row["median"]))
        for row in members:
            table.add_row(
                *map(plain_text, _cells(row, memory)),
                style="bold" if row is fastest and len(members) > 1 else None,
            )
        table.add_section()
    return table


def environment_line(environment: Row) -> str:
    """One line: the processor, its cores and its instructions for int8 and 16-bit floats."""
    present = [name for name in environment["abilities"] if _is_low_precision(name)]
    absent = [name for name in ("vnni", "amx", "bf16") if not any(name in item for item in present)]
    has = f"has {', '.join(present)}" if present else "has no instructions for int8 or bf16"
    lacks = f"; no {', no '.join(absent)}" if present and absent else ""
    return f"{environment['cpu']}, {environment['cores']} cores: {has}{lacks}"


# --- figure --------------------------------------------------------------------------------------


def _draw_panel(axes: Axes, place: Place, rows: Sequence[Row]) -> None:
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
        axes.text(end, index, _bar_text(row), va="center", fontsize=8.5, color=INK)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.32 * max(max(row["high"], row["median"]) for row in rows))
    axes.set_xlabel("milliseconds per batch", fontsize=9)
    images = f"{batch} image{'s' * (batch > 1)}"
    shape = images if length is None else f"{batch} x {length} tokens"
    axes.set_title(
        f"{shape}, {threads} thread{'s' * (threads > 1)}", loc="left", fontsize=10.5, weight="bold"
    )
    style_bar_axes(axes)
    axes.spines["left"].set_visible(False)
    for index in range(1, len(rows)):
        if rows[index]["model"] != rows[index - 1]["model"]:
            axes.axhline(index - 0.5, color=GRID_COLOUR, linewidth=0.9)


def _bar_text(row: Row) -> str:
    ratio = row.get("speedup")
    text = f"{row['median']:.3g} ms" if row["median"] < 100 else f"{row['median']:.0f} ms"
    return text if ratio is None else f"{text}, {ratio['median']:.1f} x"


def _colour(engine: str, runtime: str) -> tuple[float, float, float]:
    place = _RUNTIMES.index(runtime) if runtime in _RUNTIMES else len(_RUNTIMES)
    full = PALETTE[place]
    return to_rgb(full) if engine.endswith("fp32") else _lighter(full)


def _lighter(colour: str) -> tuple[float, float, float]:
    """The colour mixed with white; a transparent bar would show the grid lines."""
    red, green, blue = (1 - 0.55 * (1 - part) for part in to_rgb(colour))
    return red, green, blue


# --- table ---------------------------------------------------------------------------------------


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


def _by_place(rows: Sequence[Row]) -> dict[Place, list[Row]]:
    """The rows of each point of the grid, in their order."""
    places: dict[Place, list[Row]] = {}
    for row in rows:
        places.setdefault((row["threads"], row["batch"], row["length"]), []).append(row)
    return places


def _is_low_precision(name: str) -> bool:
    return any(part in name for part in ("vnni", "amx", "bf16", "i8mm", "dot", "fp16"))
