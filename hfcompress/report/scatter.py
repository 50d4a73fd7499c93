"""The metric against the size of students, the size of files, or the measured speedup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfcompress.report.findings import smallest, within_noise
from hfcompress.report.plotting import (
    GREY,
    STAR_COLOUR,
    add_legend,
    add_title,
    draw_dense_line,
    draw_points,
    draw_seeds,
    metric_label,
    metric_scale,
    new_figure,
    png_bytes,
    style_axes,
)
from hfcompress.report.rows import (
    Point,
    Row,
    average,
    compressed_points,
    dense_point,
    is_dense,
    method_of,
    metric_of,
    metric_text,
    number,
    point_of,
    points_text,
    steps_of,
)

FILE_SIZE_LABEL = "size of the model's files (MB)"

# --- students: the metric against the number of parameters -------------------------------------


@dataclass(frozen=True)
class Student:
    """Students of one method and size.

    Attributes:
        point: their metric, averaged over seeds.
        parameters: number of parameters.
        rows: the rows averaged.
    """

    point: Point
    parameters: float
    rows: tuple[Row, ...]


def teacher_parameters(rows: Sequence[Row]) -> float | None:
    """The number of parameters of the teacher; None if no step distilled."""
    for row in rows:
        for step in steps_of(row):
            found = step.get("teacher_parameters")
            if isinstance(found, (int, float)):
                return float(found)
    return None


def find_students(rows: Sequence[Row]) -> list[Student]:
    """The students by rising size, without rows that lack a size or a value."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        size = number(row, "parameters")
        if size is not None and number(row, "value") is not None and not is_dense(row):
            groups.setdefault((method_of(row, "student"), size), []).append(row)
    students = [
        Student(average(method, members), size, tuple(members))
        for (method, size), members in groups.items()
    ]
    return sorted(students, key=lambda student: (student.parameters, student.point.method))


def draw_students(rows: Sequence[Row]) -> bytes:
    """`student_figure` as PNG."""
    return png_bytes(student_figure(rows))


def student_figure(rows: Sequence[Row]) -> Figure:
    """The metric against the number of parameters, one point per student.

    Bars are 95 % intervals over examples, faint dots single seeds, the grey star is the teacher.

    Args:
        rows: any rows; those without a size or a value are left out.
    """
    metric, students = metric_of(rows), find_students(rows)
    figure, axes = _metric_axes(metric, "parameters (millions)")
    for index, student in enumerate(students):
        x = [student.parameters / 1e6]
        draw_points(axes, x, [student.point], metric_scale(metric), index)
        draw_seeds(axes, x, [student.point], metric_scale(metric), index)
    size = teacher_parameters(rows)
    _draw_dense(axes, rows, "teacher", None if size is None else size / 1e6)
    axes.set_xlim(left=0)
    add_legend(axes)
    return figure


def student_sentence(rows: Sequence[Row]) -> str:
    """One sentence: the smallest student within noise of its teacher, else the best student."""
    metric, dense, size = metric_of(rows), dense_point(rows), teacher_parameters(rows)
    students = find_students(rows)
    if dense is None or size is None or not students:
        return "No student and teacher were measured together."
    kept = [student for student in students if _is_within_noise(student, dense)]
    best = kept[0] if kept else max(students, key=lambda student: student.point.value)
    what = "Smallest student within noise of its teacher" if kept else "Best student"
    return (
        f"{what}: {best.point.method} with {best.parameters / 1e6:.1f} M parameters "
        f"({100 * best.parameters / size:.0f} % of the teacher's), {metric} "
        f"{metric_text(metric, best.point.value)} against {metric_text(metric, dense.value)}."
    )


def best_student(rows: Sequence[Row]) -> Row | None:
    """A row of the student that `student_sentence` names."""
    dense, students = dense_point(rows), find_students(rows)
    if dense is None or not students:
        return None
    kept = [student for student in students if _is_within_noise(student, dense)]
    return (kept[0] if kept else max(students, key=lambda one: one.point.value)).rows[0]


def _is_within_noise(student: Student, dense: Point) -> bool:
    lines = compressed_points(student.rows).values()
    return all(within_noise(point, dense) for line in lines for point in line)


# --- the metric against the size of the files --------------------------------------------------


def file_size_figure(rows: Sequence[Row], title: str | None = None) -> Figure:
    """The metric against megabytes, one point per row.

    Bars are 95 % intervals over examples; the dashed line is the dense model, the grey star its
    size if a row gives it; the yellow star is the smallest model within noise.

    Args:
        rows: any rows; those without a size or a value are left out.
        title: above the axes.
    """
    metric, best = metric_of(rows), smallest(rows)
    scale = metric_scale(metric)
    figure, axes = _metric_axes(metric, FILE_SIZE_LABEL)
    drawn = 0
    for place, row in enumerate(rows):
        size, point = number(row, "bytes"), point_of(row)
        if size is None or point is None:
            continue
        draw_points(axes, [size / 1e6], [point], scale, drawn)
        if place == best:
            axes.plot([size / 1e6], [scale * point.value], "*", markersize=17, zorder=2,
                      markerfacecolor=STAR_COLOUR, markeredgecolor="black",
                      label="smallest within noise")  # fmt: skip
        drawn += 1
    _draw_dense(axes, rows, "dense", _dense_megabytes(rows))
    axes.set_xlim(left=0)
    add_title(axes, title)
    add_legend(axes)
    return figure


def _dense_megabytes(rows: Sequence[Row]) -> float | None:
    """Size of the dense model's files: from its own row, else a row's size times its ratio."""
    for row in sorted(rows, key=is_dense, reverse=True):
        size, ratio = number(row, "bytes"), number(row, "compression_ratio")
        if size is not None and (ratio is not None or is_dense(row)):
            return size * (ratio or 1.0) / 1e6
    return None


# --- the metric against the measured speedup ---------------------------------------------------


@dataclass(frozen=True)
class TimedModel:
    """One row with a measured latency.

    Attributes:
        point: its metric.
        milliseconds: its latency.
        speedup: the dense model's latency, timed alongside, divided by this one.
        row: its row.
    """

    point: Point
    milliseconds: float
    speedup: float
    row: Row


def timed_models(rows: Sequence[Row]) -> list[TimedModel]:
    """The rows with a value and a measured latency, fastest first."""
    models = []
    for row in rows:
        latency = row.get("latency")
        if number(row, "value") is None or not isinstance(latency, Mapping):
            continue
        measured, dense = number(latency, "measured"), number(latency, "dense")
        if measured and dense:
            speedup = _paired_speedup(row, measured) or dense / measured
            point = average(method_of(row, "shrunk"), [row])
            models.append(TimedModel(point, measured, speedup, row))
    return sorted(models, key=lambda model: (model.milliseconds, -model.point.value))


def _paired_speedup(row: Row, measured: float) -> float | None:
    """The median of the ratios within a round, as tables show it; None without rounds."""
    for timing in row.get("timings") or ():
        if number(timing["measured"], "median") == measured:
            return number(timing["speedup"], "median")
    return None


def fastest_row(rows: Sequence[Row]) -> Row | None:
    """The row that `speedup_sentence` names."""
    dense, front = dense_point(rows), pareto_front(timed_models(rows))
    if dense is None or not front:
        return None
    kept = [model for model in front if within_noise(model.point, dense)]
    return (kept[0] if kept else front[0]).row


def pareto_front(models: Sequence[TimedModel]) -> list[TimedModel]:
    """The models with a higher metric than every faster one, fastest first."""
    front: list[TimedModel] = []
    for model in sorted(models, key=lambda model: (-model.speedup, -model.point.value)):
        if not front or model.point.value > front[-1].point.value:
            front.append(model)
    return front


def draw_speedups(rows: Sequence[Row]) -> bytes:
    """`speedup_figure` as PNG."""
    return png_bytes(speedup_figure(rows))


def speedup_figure(rows: Sequence[Row]) -> Figure:
    """The metric against speedup, one point per row; the grey line is the Pareto front.

    The two latencies of a speedup are measured alongside, so speedups compare between rows.

    Args:
        rows: any rows; those without a measured latency are left out.
    """
    metric, models = metric_of(rows), timed_models(rows)
    scale = metric_scale(metric)
    figure, axes = _metric_axes(metric, "measured speedup over the dense model (x)")
    for index, method in enumerate(dict.fromkeys(model.point.method for model in models)):
        members = [model for model in models if model.point.method == method]
        x = [model.speedup for model in members]
        draw_points(axes, x, [model.point for model in members], scale, index)
    front = pareto_front(models)
    if front:
        x = [model.speedup for model in front]
        y = [scale * model.point.value for model in front]
        axes.plot(x, y, color=GREY, linewidth=1.4, label="Pareto front")
    _draw_dense(axes, rows, "dense", None)
    add_legend(axes)
    return figure


def speedup_sentence(rows: Sequence[Row]) -> str:
    """One sentence: the fastest model of the Pareto front within noise of the dense model."""
    metric, dense, front = metric_of(rows), dense_point(rows), pareto_front(timed_models(rows))
    if not front or dense is None:
        return "No model was timed together with the dense model."
    kept = [model for model in front if within_noise(model.point, dense)]
    best = kept[0] if kept else front[0]
    what = "Fastest within noise of the dense model" if kept else "Fastest"
    return (
        f"{what}: {best.point.method}, {best.speedup:.1f} times faster "
        f"({best.milliseconds:.3g} ms), {metric} {metric_text(metric, best.point.value)} "
        f"({points_text(metric, best.point.value - dense.value)} against the dense model)."
    )


# --- several runs: the metric against the size of the files, with the front ----------------------


def draw_size_front(rows: Sequence[Row]) -> bytes:
    """`size_front_figure` as PNG."""
    return png_bytes(size_front_figure(rows))


def size_front_figure(rows: Sequence[Row]) -> Figure:
    """The metric against megabytes, one colour per method; the grey line is the Pareto front.

    Args:
        rows: any rows; those without a size or a value are left out.
    """
    metric = metric_of(rows)
    scale = metric_scale(metric)
    figure, axes = _metric_axes(metric, FILE_SIZE_LABEL)
    groups: dict[str, list[tuple[float, Point]]] = {}
    for row in rows:
        size = number(row, "bytes")
        if size is not None and number(row, "value") is not None:
            point = average(method_of(row), [row])
            groups.setdefault(point.method, []).append((size / 1e6, point))
    for index, members in enumerate(groups.values()):
        draw_points(
            axes, [size for size, _ in members], [point for _, point in members], scale, index
        )
    front: list[tuple[float, float]] = []
    every = sorted((size, -point.value) for members in groups.values() for size, point in members)
    for size, lost in every:
        if not front or -lost > front[-1][1]:
            front.append((size, -lost))
    if len(front) > 1:
        x, y = [size for size, _ in front], [scale * value for _, value in front]
        axes.plot(x, y, color=GREY, linewidth=1.4, label="Pareto front")
    add_legend(axes)
    return figure


# --- shared ------------------------------------------------------------------------------------


def _metric_axes(metric: str, xlabel: str) -> tuple[Figure, Axes]:
    """A figure whose vertical axis is the metric."""
    figure = new_figure(9.5, 5.0)
    axes = figure.add_subplot()
    style_axes(axes)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(metric_label(metric))
    return figure, axes


def _draw_dense(axes: Axes, rows: Sequence[Row], name: str, x: float | None) -> None:
    """Draw the dense model's value as a line, and as a star at x if that is known."""
    dense, metric = dense_point(rows), metric_of(rows)
    if dense is None:
        return
    value = metric_scale(metric) * dense.value
    label = f"{name}, {metric_text(metric, dense.value)}"
    draw_dense_line(axes, value, label if x is None else None)
    if x is not None:
        axes.plot([x], [value], "*", color=GREY, markersize=14, label=label, zorder=4)
