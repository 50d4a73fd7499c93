"""Figures of students: accuracy against parameters, and the teacher's softmax."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hfcompress.errors import BadInputError
from hfcompress.report.scatter import (
    find_students,
    student_figure,
    student_sentence,
    teacher_parameters,
)
from hfcompress.report.temperature import softmax, teacher_logits, temperature_figure
from hfcompress.report.write import write_report

LOGITS = [[2.0, -1.0], [0.1, 0.3]]


def row(method: str, parameters: int, value: float, p: float = 0.5, **more: Any) -> dict[str, Any]:
    step = {"step": "distill", "teacher_parameters": 20_000_000, "teacher_logits": LOGITS}
    return {
        "method": method, "parameters": parameters, "metric": "accuracy", "value": value,
        "drop": 0.9 - value, "low": value - 0.02, "high": value + 0.02, "mcnemar_p": p,
        "actual_sparsity": 0.0, "requested_sparsity": None, "steps": [step], **more,
    }  # fmt: skip


ROWS = [
    row("distill, layers 3", 12_000_000, 0.90, seed=0),
    row("distill, layers 3", 12_000_000, 0.88, seed=1),
    row("distill, layers 2", 8_000_000, 0.89),
    row("distill, layers 1", 4_000_000, 0.80, p=0.001),
]


def test_students_are_averaged_over_seeds_and_sorted_by_size() -> None:
    students = find_students([*ROWS, {"method": "broken", "parameters": 3}])
    assert [student.parameters for student in students] == [4e6, 8e6, 12e6]
    assert students[-1].point.value == pytest.approx(0.89)
    assert students[-1].point.values == (0.90, 0.88)
    assert teacher_parameters(ROWS) == 2e7
    assert teacher_parameters([{"method": "prune", "steps": [{"step": "prune"}]}]) is None


def test_the_figure_shows_each_student_and_the_teacher() -> None:
    (axes,) = student_figure(ROWS).axes
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert sorted(labels) == [
        "distill, layers 1", "distill, layers 2", "distill, layers 3", "teacher, 90.0 %",
    ]  # fmt: skip
    places = {
        line.get_label(): (line.get_xdata()[0], line.get_ydata()[0])  # type: ignore[index]
        for line in axes.get_lines()
        if len(line.get_xdata()) == 1  # type: ignore[arg-type]
    }
    assert places["teacher, 90.0 %"] == (20.0, pytest.approx(90.0))
    empty = student_figure([]).axes[0]
    assert empty.texts[0].get_text() == "nothing measured yet"


def test_the_sentence_names_the_smallest_student_within_noise() -> None:
    assert student_sentence(ROWS) == (
        "Smallest student within noise of its teacher: distill, layers 2 with 8.0 M parameters "
        "(40 % of the teacher's), accuracy 89.0 % against 90.0 %."
    )
    assert student_sentence(ROWS[-1:]).startswith("Best student: distill, layers 1 with 4.0 M")
    assert student_sentence([]) == "No student and teacher were measured together."


def test_softmax_is_softer_at_higher_temperatures() -> None:
    one, five = softmax([2.0, -1.0], 1.0), softmax([2.0, -1.0], 5.0)
    assert one[0] == pytest.approx(1 / (1 + math.exp(-3.0)))
    assert five[0] == pytest.approx(1 / (1 + math.exp(-0.6)))
    assert sum(softmax([1000.0, 0.0, -5.0], 0.5)) == pytest.approx(1.0)
    for temperature in (0.0, -1.0):
        with pytest.raises(BadInputError, match="above 0"):
            softmax([1.0], temperature)


def test_the_softmax_has_a_panel_per_example_and_a_bar_per_temperature() -> None:
    figure = temperature_figure(LOGITS, (1.0, 10.0), ("bad", "good"))
    assert len(figure.axes) == 2
    bars = [patch.get_height() for patch in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert bars == pytest.approx([*softmax(LOGITS[0], 1.0), *softmax(LOGITS[0], 10.0)])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["bad", "good"]
    assert [tick.get_text() for tick in temperature_figure(LOGITS).axes[0].get_xticklabels()] == [
        "0", "1",
    ]  # fmt: skip
    with pytest.raises(BadInputError, match="no examples"):
        temperature_figure([])


def test_a_report_of_students_shows_size_and_temperature(tmp_path: Path) -> None:
    assert teacher_logits(ROWS) == LOGITS
    written = {path.name for path in write_report(ROWS, tmp_path)}
    assert {"size.png", "temperature.png", "curve.png", "report.html"} <= written
    page = (tmp_path / "report.html").read_text()
    assert "Smallest student within noise" in page
    assert "against the number of parameters" in page
    assert "softmax by temperature" in page
    plain = [{**item, "steps": []} for item in ROWS]
    written = {path.name for path in write_report(plain, tmp_path / "plain")}
    assert not {"size.png", "temperature.png"} & written
    page = (tmp_path / "plain" / "report.html").read_text()
    assert "against the number of parameters" not in page
    assert "softmax by temperature" not in page
