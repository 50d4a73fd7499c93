"""What a temperature does: a teacher's probabilities for a few examples, softer and softer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from hfcompress.errors import BadInputError
from hfcompress.report.plotting import PALETTE, new_figure, png_bytes, tidy
from hfcompress.report.rows import Row

TEMPERATURES = (1.0, 2.0, 3.0, 5.0, 10.0)
Logits = Sequence[Sequence[float]]


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    """``exp(z / T)`` over their sum.

    Raises:
        BadInputError: a temperature that is not above 0.
    """
    if temperature <= 0:
        raise BadInputError(f"the temperature must be above 0, not {temperature}")
    largest = max(logits)
    powers = [math.exp((value - largest) / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def teacher_logits(rows: Sequence[Row]) -> Logits | None:
    """The teacher's logits of some measured examples, as a step that distilled noted them."""
    for row in rows:
        for step in row.get("steps") or ():
            found = step.get("teacher_logits") if isinstance(step, Mapping) else None
            if found:
                return [[float(value) for value in example] for example in found]
    return None


def draw_temperatures(
    logits: Logits, temperatures: Sequence[float] = TEMPERATURES, labels: Sequence[str] = ()
) -> bytes:
    """The picture of `temperature_figure` as PNG."""
    return png_bytes(temperature_figure(logits, temperatures, labels))


def temperature_figure(
    logits: Logits, temperatures: Sequence[float] = TEMPERATURES, labels: Sequence[str] = ()
) -> Figure:
    """One panel for each example: the softmax over the classes at each temperature.

    At T = 1 a sure teacher says hardly more than the label; at higher temperatures it shows how
    near the other classes are, which is what the student learns from (Hinton et al., 1503.02531).

    Args:
        logits: examples x classes.
        temperatures: each above 0.
        labels: the classes' names; numbers by default.

    Raises:
        BadInputError: no example, or a temperature that is not above 0.
    """
    if not logits:
        raise BadInputError("there is no example whose softmax could be drawn; give at least one")
    classes = list(labels) or [str(number) for number in range(len(logits[0]))]
    figure = new_figure(1.2 + 2.6 * len(logits), 3.4)
    panels = figure.subplots(1, len(logits), sharey=True, squeeze=False)[0]
    width = 0.8 / len(temperatures)
    for number, (axes, example) in enumerate(zip(panels, logits, strict=True), start=1):
        tidy(axes)
        for place, temperature in enumerate(temperatures):
            shift = (place - (len(temperatures) - 1) / 2) * width
            positions = [index + shift for index in range(len(classes))]
            colour = PALETTE[place % len(PALETTE)]
            axes.bar(positions, softmax(example, temperature), width, color=colour,
                     label=f"T = {temperature:g}")  # fmt: skip
        axes.set_xticks(range(len(classes)), classes)
        axes.set_title(f"example {number}", loc="left", fontsize=11)
        axes.set_ylim(0, 1)
    panels[0].set_ylabel("the teacher's probability")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9.5)
    return figure
