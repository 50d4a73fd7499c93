"""Rows of the vision benchmark that end in int8: the dense ResNet as it is, and the pipeline."""

from __future__ import annotations

from functools import partial

from benchmarks._clock import CpuClock
from benchmarks._figures import Figure
from benchmarks._vision import Row, RowMaker, Setting, Told, row_of
from hfcompress.errors import HfcompressError
from hfcompress.sweep.run import run

PIPELINE = "vision-pipeline"
INT8 = "ResNet, int8 static"
STEPS = "ResNet, distilled, half pruned, int8"
INT8_POINTS = {INT8: 0.2, STEPS: 1.0}
"""Row -> points that may be lost against its dense model."""


def int8_rows(resnet: str) -> dict[str, RowMaker]:
    """The rows by name.

    Args:
        resnet: the recipe whose dense model is quantized.
    """
    return {
        INT8: partial(quantized, resnet, "onnxruntime"),
        f"{INT8} (OpenVINO)": partial(quantized, resnet, "openvino"),
        STEPS: pipeline,
    }


def quantized(recipe: str, backend: str, setting: Setting) -> Row:
    """A recipe's dense model in static int8."""
    step = {"quantize": {"backend": backend, "mode": "static"}}
    return setting.compressed(recipe, f"resnet int8 {backend}", [step])


def pipeline(setting: Setting) -> Row:
    """The last of the recipe's four rows beside its first; the teacher's minutes aside.

    Raises:
        HfcompressError: a step failed.
    """
    recipe = setting.recipe(PIPELINE)
    setting.run(setting.recipe(PIPELINE, ()), f"{PIPELINE} dense")  # trained here where needed
    clock = CpuClock()
    result = run(recipe, setting.work / "runs" / PIPELINE, Told())
    if result.failures:
        raise HfcompressError(f"{PIPELINE}: {result.failures[0][1]}")
    first, *_, last = result.rows
    return row_of(last, first, clock.minutes)


def int8_figures(rows: dict[str, Row]) -> list[Figure]:
    """Bytes, beside the points that every row has: the share left, and how many times smaller."""
    found = []
    for name, row in rows.items():
        if name.startswith(INT8):
            share = round(row.more["bytes"], 4)
            target = "<= 0.27" if name == INT8 else None
            found.append(Figure(f"{name}, share of the bytes", share, "share", target=target))
    if STEPS in rows:
        smaller = round(1 / rows[STEPS].more["bytes"], 1)
        found.append(Figure(f"{STEPS}, times smaller", smaller, "x", target=">= 20"))
    return found
