"""A teacher's softmax for a few examples at rising temperatures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import (
    add_legend,
    colour_of,
    new_figure,
    png_bytes,
    style_axes,
)
from hfcompress.report.rows import Row, steps_of

TEMPERATURES = (1.0, 2.0, 3.0, 5.0, 10.0)
Logits = Sequence[Sequence[float]]


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    """The softmax of ``logits / temperature``.

    Raises:
        BadInputError: a temperature of 0 or less.
    """
    if temperature <= 0:
        raise BadInputError(
            f"the temperature must be above 0, not {temperature}; use 1 for the plain softmax"
        )
    largest = max(logits)
    powers = [math.exp((value - largest) / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def teacher_logits(rows: Sequence[Row]) -> Logits | None:
    """The teacher's logits for some measured examples, from a distillation step; else None."""
    for row in rows:
        for step in steps_of(row):
            found = step.get("teacher_logits")
            if found:
                return [[float(value) for value in example] for example in found]
    return None


def draw_temperatures(
    logits: Logits, temperatures: Sequence[float] = TEMPERATURES, labels: Sequence[str] = ()
) -> bytes:
    """`temperature_figure` as PNG."""
    return png_bytes(temperature_figure(logits, temperatures, labels))


def temperature_figure(
    logits: Logits, temperatures: Sequence[float] = TEMPERATURES, labels: Sequence[str] = ()
) -> Figure:
    """The softmax over the classes at each temperature, one panel per example.

    At T = 1 a confident teacher adds little to the label; higher temperatures reveal the relative
    probabilities of the other classes, from which the student learns (Hinton et al., 1503.02531).

    Args:
        logits: examples x classes.
        temperatures: each above 0.
        labels: names of the classes; their ids by default.

    Raises:
        BadInputError: no example, or a temperature of 0 or less.
    """
    if not logits:
        raise BadInputError("no examples to draw; give the logits of at least one")
    classes = list(labels) or [str(number) for number in range(len(logits[0]))]
    figure = new_figure(1.2 + 2.6 * len(logits), 3.4)
    panels = figure.subplots(1, len(logits), sharey=True, squeeze=False)[0]
    width = 0.8 / len(temperatures)
    for number, (axes, example) in enumerate(zip(panels, logits, strict=True), start=1):
        style_axes(axes)
        for place, temperature in enumerate(temperatures):
            shift = (place - (len(temperatures) - 1) / 2) * width
            positions = [index + shift for index in range(len(classes))]
            axes.bar(positions, softmax(example, temperature), width, color=colour_of(place),
                     label=f"T = {temperature:g}")  # fmt: skip
        axes.set_xticks(range(len(classes)), classes)
        axes.set_title(f"example {number}", loc="left", fontsize=11)
        axes.set_ylim(0, 1)
    panels[0].set_ylabel("probability by the teacher")
    add_legend(panels[-1])
    return figure
