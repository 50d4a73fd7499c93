"""A pipeline step by step: the metric, size and latency after each step, as table and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import (
    GREY,
    colour_of,
    metric_label,
    metric_scale,
    new_figure,
    png_bytes,
    style_bar_axes,
)
from hfcompress.report.rows import (
    Row,
    average,
    count_text,
    drop_text,
    interval_text,
    is_dense,
    is_percent,
    method_of,
    metric_of,
    metric_text,
    number,
    points_text,
    share_text,
)
from hfcompress.report.scatter import FILE_SIZE_LABEL
from hfcompress.report.several import are_several
from hfcompress.report.table import ResultTable, TerminalTable, make_column

BAR_HEIGHT = 0.62
BARS_CAPTION = "The metric and the size of the model after each step of the pipeline."
MOST_BARS = 60  # a picture of more would be metres high
_MOST_ROWS = 1000


def is_pipeline(rows: Sequence[Row]) -> bool:
    """Whether rows follow different steps of one recipe, or are candidates of a search."""
    return not are_several(rows) and (
        any(_candidate(row) for row in rows)
        or len({len(row.get("steps") or ()) for row in rows}) > 1
    )


# --- table, sentence, section of a model card --------------------------------------------------


def pipeline_table(rows: Sequence[Row]) -> ResultTable:
    """One line per step, in the order of the rows.

    Columns: step, engine, metric with 95 % interval, drop and agreement with the dense model,
    parameters, size and compression ratio; for each timed batch the latency and the speedup over
    the dense model in torch fp32. A column without values is left out. The caption describes the
    timing. Of very many rows the first ones are shown.
    """
    left_out = ""
    if len(rows) > _MOST_ROWS:
        left_out = f"the first {_MOST_ROWS:,} of {len(rows):,} rows are shown; results.csv has all"
    rows, metric = rows[:_MOST_ROWS], metric_of(rows)
    column = partial(make_column, rows, always=True)
    columns = [
        column("candidate" if any(map(_candidate, rows)) else "step", _step_name, text=True),
        column("engine", _engine, text=True, spare=2),
        column(metric, lambda row: metric_text(metric, number(row, "value"))),
        column("95 % interval", lambda row: interval_text(metric, row), spare=4),
        column("drop", lambda row: drop_text(metric, row)),
        column("agreement", lambda row: share_text(row, "agreement"), spare=3),
        column("parameters", lambda row: count_text(row, "parameters")),
        column("non-zero", lambda row: count_text(row, "nonzero_parameters"), spare=1),
        column("size", _size_text),
        column("smaller", lambda row: _ratio_text(row, "compression_ratio")),
    ]
    for shape in dict.fromkeys(_shape(timing) for row in rows for timing in _timings(row)):
        columns += [
            column(shape, partial(_latency_text, shape=shape)),
            column("faster", partial(_speedup_text, shape=shape)),
        ]
    shown = tuple(column for column in columns if set(column.cells) - {""})
    return ResultTable(shown, _timing_caption(rows), frozenset(), tuple(rows), left_out)


def pipeline_rows(rows: Sequence[Row]) -> TerminalTable:
    """`pipeline_table` for ``rich.console.Console.print``."""
    return TerminalTable(pipeline_table(rows), None)


def pipeline_sentence(rows: Sequence[Row]) -> str:
    """One sentence: the last row against the dense model, or the number of candidates."""
    if any(_candidate(row) for row in rows):
        return f"{len(rows)} candidates measured, in the order in which they were tried."
    done = [row for row in rows if number(row, "value") is not None]
    if not done or is_dense(done[-1]):
        return "No step is measured yet."
    last, metric = done[-1], metric_of(rows)
    size, ratio = number(last, "bytes"), number(last, "compression_ratio")
    parts = [f"After {_step_name(last)}:"]
    if size is not None and ratio is not None:
        bytes_text = f"{size * ratio / 1e6:.1f} to {size / 1e6:.2f} MB"
        parts.append(f"{ratio:.1f} times smaller ({bytes_text}),")
    parts += [
        f"{_speedup_text(last, shape).removesuffix(' x')} times faster at {shape},"
        for shape in map(_shape, _timings(last))
    ]
    parts.append(f"{metric} {metric_text(metric, number(last, 'value'))}")
    drop = number(last, "drop")
    if drop is not None:
        parts.append(f"({points_text(metric, -drop)} against the dense model)")
    return " ".join(parts) + "."


def speed_section(row: Row) -> str:
    """Size and latency of one row as Markdown for a model card; empty without latencies."""
    shapes = dict.fromkeys(map(_shape, _timings(row)))
    if not shapes:
        return ""
    lines = ["| examples x tokens | latency | times faster |", "|---|---:|---:|"]
    lines += [
        f"| {one} | {_latency_text(row, one)} | {_speedup_text(row, one)} |" for one in shapes
    ]
    size = f"{_size(row)} in {_engine(row)}"
    return "\n".join([*lines, "", f"{size}; {_timing_caption([row])}.", ""])


def size_sentence(row: Row) -> str:
    """Size of one row as Markdown for a model card; empty where it is not known."""
    return f"{_size(row)}; its speed was not measured.\n" if _size_text(row) else ""


def _size(row: Row) -> str:
    if number(row, "compression_ratio") in (None, 1.0):
        return _size_text(row)
    return f"{_size_text(row)} ({_ratio_text(row, 'compression_ratio')} smaller)"


def _candidate(row: Row) -> str:
    return str((row.get("settings") or {}).get("candidate") or "")


def _step_name(row: Row) -> str:
    """The step that a row was measured after, or the name of a search's candidate."""
    return _candidate(row) or ("dense" if is_dense(row) else str(row.get("method") or ""))


def _size_text(row: Row) -> str:
    value = number(row, "bytes")
    return "" if value is None else f"{value / 1e6:.2f} MB"


def _ratio_text(row: Row, key: str) -> str:
    value = number(row, key)
    return "" if value is None else f"{value:.2f} x"


def _timings(row: Row) -> list[Row]:
    return [timing for timing in row.get("timings") or () if isinstance(timing, Mapping)]


def _engine(row: Row) -> str:
    return next((str(timing.get("engine") or "") for timing in _timings(row)), "")


def _shape(timing: Row) -> str:
    return f"{timing.get('batch_size')} x {timing.get('length')}"


def _timing_part(row: Row, shape: str, name: str) -> Row:
    timing = next((one for one in _timings(row) if _shape(one) == shape), {})
    found = timing.get(name)
    return found if isinstance(found, Mapping) else {}


def _latency_text(row: Row, shape: str) -> str:
    value = number(_timing_part(row, shape, "measured"), "median")
    return "" if value is None else f"{value:.3g} ms"


def _speedup_text(row: Row, shape: str) -> str:
    return _ratio_text(_timing_part(row, shape, "speedup"), "median")


def _timing_caption(rows: Sequence[Row]) -> str:
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


# --- bars --------------------------------------------------------------------------------------


def draw_bars(rows: Sequence[Row]) -> bytes:
    """`bars_figure` as PNG."""
    return png_bytes(bars_figure(rows))


def bars_figure(rows: Sequence[Row]) -> Figure:
    """Two panels with one bar per row: the metric with its 95 % interval, and megabytes.

    Args:
        rows: in the pipeline's order, the dense model first; rows without value or bytes are
            left out, and so are those after the first `MOST_BARS`.

    Raises:
        BadInputError: no row has both.
    """
    known = [
        row for row in rows
        if number(row, "value") is not None and number(row, "bytes") is not None
    ][:MOST_BARS]  # fmt: skip
    if not known:
        raise BadInputError("no row has a value and bytes; run the recipe first")
    figure = new_figure(11.0, 0.62 * len(known) + 1.5)
    metric_axes, size_axes = figure.subplots(1, 2, sharey=True)
    _draw_metric_bars(metric_axes, known)
    _draw_size_bars(size_axes, known)
    metric_axes.set_yticks(range(len(known)), [method_of(row, "") for row in known])
    metric_axes.set_ylim(len(known) - 0.4, -0.6)
    return figure


def _draw_metric_bars(axes: Axes, rows: Sequence[Row]) -> None:
    metric = metric_of(rows)
    scale, points = metric_scale(metric), [average(method_of(row), [row]) for row in rows]
    values = [scale * point.value for point in points]
    lows = [scale * (point.value if point.low is None else point.low) for point in points]
    highs = [scale * (point.value if point.high is None else point.high) for point in points]
    style_bar_axes(axes)
    axes.barh(range(len(rows)), values, height=BAR_HEIGHT, color=colour_of(0))
    lowest, highest = min(lows + values), max(highs + values)
    # Start near the lowest value, because differences of a point are invisible on a full axis.
    # The label gives the start.
    start = max(0.0, lowest - 2 * max(highest - lowest, 0.01 * scale))
    span = highest - start
    for place, (low, high, value) in enumerate(zip(lows, highs, values, strict=True)):
        if low < high:
            axes.plot([low, high], [place, place], color="black", linewidth=1.4)
        text = metric_text(metric, points[place].value)
        axes.text(max(value, high) + 0.02 * span, place, text, va="center", fontsize=10,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axes.axvline(values[0], color=GREY, linewidth=0.9, linestyle="--")
    axes.set_xlim(start, highest + 0.24 * span)
    unit = ["%"] if is_percent(metric) else []
    axes.set_xlabel(metric_label(metric, ", ".join([*unit, *[f"from {start:.3g}"] * (start > 0)])))


def _draw_size_bars(axes: Axes, rows: Sequence[Row]) -> None:
    sizes = [(number(row, "bytes") or 0.0) / 1e6 for row in rows]
    style_bar_axes(axes)
    axes.barh(range(len(rows)), sizes, height=BAR_HEIGHT, color=colour_of(2))
    for place, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        ratio = number(row, "compression_ratio") or (sizes[0] / size if size else 1.0)
        smaller = f"   {ratio:.1f} x smaller" if ratio > 1.005 else ""
        text = f"{size:.3g} MB{smaller}"
        axes.text(size + 0.012 * max(sizes), place, text, va="center", fontsize=10)
    axes.set_xlim(0, 1.34 * max(sizes))
    axes.set_xlabel(FILE_SIZE_LABEL)
