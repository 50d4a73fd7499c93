"""A pipeline step by step: what each step costs in the metric and gives in bytes and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import GREY, PALETTE, new_figure, png_bytes, tidy
from hfcompress.report.rows import (
    Row,
    drop_text,
    interval_text,
    is_dense,
    is_percent,
    metric_of,
    metric_text,
    number,
    points_text,
)
from hfcompress.report.table import Column, ResultTable, TerminalTable


def is_pipeline(rows: Sequence[Row]) -> bool:
    """Whether rows stand after different steps of one recipe (``measure.every_step``), or are the
    candidates of a search."""
    return (
        any(_candidate(row) for row in rows)
        or len({len(row.get("steps") or ()) for row in rows}) > 1
    )


def pipeline_table(rows: Sequence[Row]) -> ResultTable:
    """One line for each step, in the rows' order.

    Columns: step, metric, its 95 % interval, drop and agreement with the dense model, parameters
    and those that are not zero, bytes, how many times smaller; for each batch that was timed
    milliseconds and how many times faster than the dense model in torch fp32. A column without
    any value is left out. The caption says what times were taken with.
    """
    metric = metric_of(rows)

    def column(
        title: str, cell: Callable[[Row], str], text: bool = False, spare: int = 0
    ) -> Column:
        return Column(title, tuple(cell(row) for row in rows), text, always=True, spare=spare)

    columns = [
        column("candidate" if any(map(_candidate, rows)) else "step", _step, text=True),
        column("engine", _engine, text=True, spare=2),
        column(metric, lambda row: metric_text(metric, number(row, "value"))),
        column("95 % interval", lambda row: interval_text(metric, row), spare=4),
        column("drop", lambda row: drop_text(metric, row)),
        column("agreement", lambda row: _share(row), spare=3),
        column("parameters", lambda row: _count(row, "parameters")),
        column("not zero", lambda row: _count(row, "nonzero_parameters"), spare=1),
        column("size", _size),
        column("smaller", lambda row: _times(number(row, "compression_ratio"))),
    ]
    shapes = dict.fromkeys(_shape(timing) for row in rows for timing in _timings(row))
    for shape in shapes:
        columns += [
            column(shape, lambda row, shape=shape: _milliseconds(row, shape)),  # type: ignore[misc]
            column("faster", lambda row, shape=shape: _speedup(row, shape)),  # type: ignore[misc]
        ]
    shown = tuple(column for column in columns if set(column.cells) - {""})
    return ResultTable(shown, _caption(rows), frozenset())


def pipeline_rows(rows: Sequence[Row]) -> TerminalTable:
    """`pipeline_table` for ``rich.console.Console.print``."""
    return TerminalTable(pipeline_table(rows), None)


def pipeline_sentence(rows: Sequence[Row]) -> str:
    """What the whole pipeline gives: its last row against the dense model."""
    if any(_candidate(row) for row in rows):
        return f"{len(rows)} candidates measured, in the order in which they were tried."
    done = [row for row in rows if number(row, "value") is not None]
    if not done or is_dense(done[-1]):
        return "No step is measured yet."
    last, metric = done[-1], metric_of(rows)
    size, ratio = number(last, "bytes"), number(last, "compression_ratio")
    parts = [f"After {_step(last)}:"]
    if size is not None and ratio is not None:
        bytes_text = f"{size * ratio / 1e6:.1f} to {size / 1e6:.2f} MB"
        parts.append(f"{ratio:.1f} times smaller ({bytes_text}),")
    parts += [
        f"{_speedup(last, _shape(timing)).removesuffix(' x')} times faster at {_shape(timing)},"
        for timing in _timings(last)
    ]
    parts.append(f"{metric} {metric_text(metric, number(last, 'value'))}")
    drop = number(last, "drop")
    if drop is not None:
        parts.append(f"({points_text(metric, -drop)} against the dense model)")
    return " ".join(parts) + "."


def _step(row: Row) -> str:
    """What a row stands after: a step, or all of what a search calls a candidate."""
    candidate = _candidate(row)
    return candidate or ("dense" if is_dense(row) else str(row.get("method") or ""))


def speed_section(row: Row) -> str:
    """Size and times of one row for a model card, as Markdown; empty where it was not timed."""
    shapes = dict.fromkeys(map(_shape, _timings(row)))
    if not shapes:
        return ""
    lines = ["| examples x tokens | milliseconds | times faster |", "|---|---:|---:|"]
    lines += [f"| {one} | {_milliseconds(row, one)} | {_speedup(row, one)} |" for one in shapes]
    size = f"{_size(row)} ({_times(number(row, 'compression_ratio'))} smaller) in {_engine(row)}"
    return "\n".join([*lines, "", f"{size}; {_caption([row])}.", ""])


def _candidate(row: Row) -> str:
    return str((row.get("settings") or {}).get("candidate") or "")


def _engine(row: Row) -> str:
    return next((str(timing.get("engine") or "") for timing in _timings(row)), "")


def _share(row: Row) -> str:
    value = number(row, "agreement")
    return "" if value is None else f"{100 * value:.1f} %"


def _count(row: Row, key: str) -> str:
    value = number(row, key)
    return "" if value is None else f"{value:,.0f}"


def _size(row: Row) -> str:
    value = number(row, "bytes")
    return "" if value is None else f"{value / 1e6:.2f} MB"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} x"


def _timings(row: Row) -> list[Row]:
    timings = row.get("timings") or ()
    return [timing for timing in timings if isinstance(timing, Mapping)]


def _shape(timing: Row) -> str:
    return f"{timing.get('batch_size')} x {timing.get('length')}"


def _found(row: Row, shape: str, name: str) -> Row:
    timing = next((one for one in _timings(row) if _shape(one) == shape), {})
    found = timing.get(name)
    return found if isinstance(found, Mapping) else {}


def _milliseconds(row: Row, shape: str) -> str:
    value = number(_found(row, shape, "measured"), "median")
    return "" if value is None else f"{value:.3g} ms"


def _speedup(row: Row, shape: str) -> str:
    return _times(number(_found(row, shape, "speedup"), "median"))


def _caption(rows: Sequence[Row]) -> str:
    timings = [timing for row in rows for timing in _timings(row)]
    rounds = [value for timing in timings if (value := number(timing, "repeats")) is not None]
    threads = sorted({value for timing in timings if (value := number(timing, "threads"))})
    if not rounds or not threads:
        return ""
    counts = " or ".join(f"{count:g}" for count in threads)
    return (
        f"examples x tokens, median of {min(rounds):g} rounds or more, each row in its engine and "
        f"in turns with the dense model in torch fp32, {counts} "
        f"thread{'s' * (threads != [1])} each"
        + ("; openvino compiled for that shape" if any(one.get("fixed") for one in timings) else "")
    )


BARS_CAPTION = "What each step of the pipeline keeps of the metric, and what is left of the size."


def draw_bars(rows: Sequence[Row]) -> bytes:
    """The picture of `bars_figure` as PNG."""
    return png_bytes(bars_figure(rows))


def bars_figure(rows: Sequence[Row]) -> Figure:
    """Two panels, one bar for each row: the metric with its 95 % interval, and megabytes.

    Args:
        rows: in the pipeline's order, the dense model first; rows without value or bytes are
            left out.

    Raises:
        BadInputError: no row has both.
    """
    known = [
        row for row in rows
        if number(row, "value") is not None and number(row, "bytes") is not None
    ]  # fmt: skip
    if not known:
        raise BadInputError("no row has a value and bytes; run the recipe first")
    figure = new_figure(11.0, 0.62 * len(known) + 1.5)
    quality, size = figure.subplots(1, 2, sharey=True)
    _quality(quality, known)
    _size_bars(size, known)
    quality.set_yticks(range(len(known)), [str(row.get("method") or "") for row in known])
    quality.set_ylim(len(known) - 0.4, -0.6)
    return figure


def _quality(axes: Axes, rows: Sequence[Row]) -> None:
    metric = metric_of(rows)
    factor = 100 if is_percent(metric) else 1
    values = [factor * (number(row, "value") or 0.0) for row in rows]
    _plain(axes)
    axes.barh(range(len(rows)), values, height=0.62, color=PALETTE[0])
    ends = list(values)
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        low, high = number(row, "low"), number(row, "high")
        if low is not None and high is not None:
            axes.plot([factor * low, factor * high], [place, place], color="black", linewidth=1.4)
            ends[place] = max(value, factor * high)
    lows = [factor * low for row in rows if (low := number(row, "low")) is not None]
    lowest = min([*lows, *values])
    highest = max(ends)
    # Differences of a point do not show on an axis from nought; the axis says where it starts.
    start = max(0.0, lowest - 2 * max(highest - lowest, 0.01 * factor))
    span = highest - start
    for place, row in enumerate(rows):
        axes.text(ends[place] + 0.02 * span, place, metric_text(metric, number(row, "value")),
                  va="center", fontsize=10)  # fmt: skip
    axes.axvline(values[0], color=GREY, linewidth=0.9, linestyle="--")
    axes.set_xlim(start, highest + 0.24 * span)
    where = f", from {start:.3g}" if start else ""
    unit = " (%" if factor == 100 else " ("
    axes.set_xlabel(f"{metric.replace('_', ' ')}{unit}{where})".replace(" (, ", " ("))


def _size_bars(axes: Axes, rows: Sequence[Row]) -> None:
    sizes = [(number(row, "bytes") or 0.0) / 1e6 for row in rows]
    _plain(axes)
    axes.barh(range(len(rows)), sizes, height=0.62, color=PALETTE[2])
    for place, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        ratio = number(row, "compression_ratio") or (sizes[0] / size if size else 1.0)
        smaller = f"   {ratio:.1f} x smaller" if ratio > 1.005 else ""
        axes.text(size + 0.012 * max(sizes), place, f"{size:.3g} MB{smaller}", va="center",
                  fontsize=10)  # fmt: skip
    axes.set_xlim(0, 1.34 * max(sizes))
    axes.set_xlabel("size of the model's files (MB)")


def _plain(axes: Axes) -> None:
    tidy(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#DADCE0", linewidth=0.7)
    axes.tick_params(axis="y", length=0)
