"""The metric against bytes and against measured milliseconds, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfcompress.report.plotting import (
    GREY,
    add_legend,
    draw_dense_line,
    draw_points,
    metric_label,
    metric_scale,
    new_figure,
    style_axes,
)
from hfcompress.report.points import milliseconds_of
from hfcompress.report.rows import (
    Row,
    average,
    dense_point,
    is_dense,
    method_of,
    metric_of,
    metric_text,
    number,
)

Cost = Callable[[Row], float | None]


def _megabytes_of(row: Row) -> float | None:
    size = number(row, "bytes")
    return None if size is None else size / 1e6


_COSTS: dict[str, Cost] = {
    "size of the model's files (MB)": _megabytes_of,
    "milliseconds, measured": milliseconds_of,
}


def costs_figure(rows: Sequence[Row]) -> Figure:
    """The metric against megabytes (left) and measured milliseconds (right), a line per method.

    Bars are 95 % intervals over examples; the dashed line and the star are the dense model.

    Args:
        rows: any rows; a panel leaves out those that do not know its cost.
    """
    figure, metric = new_figure(11.5, 4.6), metric_of(rows)
    methods = list(dict.fromkeys(method_of(row) for row in rows if not is_dense(row)))
    panels: list[Axes] = list(figure.subplots(1, len(_COSTS), sharey=True))
    for axes, (label, cost) in zip(panels, _COSTS.items(), strict=True):
        style_axes(axes)
        axes.set_xlabel(label)
        for index, method in enumerate(methods):
            _draw_line(axes, [row for row in rows if method_of(row) == method], cost, index)
        _draw_dense(axes, rows, cost)
        axes.set_xlim(left=0)
    panels[0].set_ylabel(metric_label(metric))
    add_legend(panels[-1])
    return figure


def _draw_line(axes: Axes, rows: Sequence[Row], cost: Cost, index: int) -> None:
    """Draw the rows of one method by rising size: times of nearly the same length come in any
    order, and a line that followed them would leap between settings."""
    known = [(x, row) for row in rows if (x := cost(row)) is not None and _has_value(row)]
    if not known:
        return
    known.sort(key=lambda pair: (number(pair[1], "bytes") or 0, pair[0]))
    points = [average(method_of(row), [row]) for _, row in known]
    scale = metric_scale(metric_of(rows))
    draw_points(axes, [x for x, _ in known], points, scale, index, linestyle="-")


def _draw_dense(axes: Axes, rows: Sequence[Row], cost: Cost) -> None:
    dense, metric = dense_point(rows), metric_of(rows)
    if dense is None:
        return
    value = metric_scale(metric) * dense.value
    draw_dense_line(axes, value)
    places = [x for row in rows if is_dense(row) and (x := cost(row)) is not None]
    label = f"dense, {metric_text(metric, dense.value)}"
    axes.plot(
        places[:1], [value] * len(places[:1]), "*", color=GREY, markersize=14, label=label, zorder=4
    )


def _has_value(row: Row) -> bool:
    return number(row, "value") is not None
