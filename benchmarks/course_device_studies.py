"""Studies of bytes and milliseconds, each with its picture, on Fashion-MNIST.

    python -m benchmarks.course_device_studies --pictures docs/studies \
        --json benchmarks/results/course_device_studies.json

As `benchmarks.course_studies`, for what is measured on a machine or written for a device: what is
removed (weights, N of M weights, neurons, layers) over bytes and over milliseconds, which needs
llvmlite for the products that skip zeros; and one-dimensional signals in a file for a watch, which
needs LiteRT. A study whose packages are missing is left out, and says so.
"""

from __future__ import annotations

from matplotlib import figure as pictures
from torch import nn

from benchmarks import _course_granularity as by_granularity
from benchmarks._course import Setting, fit, loader, pixels, signals
from benchmarks._figures import Figure
from benchmarks.course_phone import signal_network
from benchmarks.course_studies import ROWS, Study, make_studies
from hfcompress import (
    CompressionPipeline,
    PruningConfig,
    QuantizationConfig,
    ShrinkConfig,
    plots,
)
from hfcompress.sweep.module_steps import ModuleStep

WATCH = QuantizationConfig(backend="litert", mode="dynamic")


def main() -> None:
    """Make every study that is not there yet, and write them all."""
    make_studies("course_device_studies", __doc__, STUDIES)


def granularity(setting: Setting) -> tuple[list[Figure], pictures.Figure]:
    """Weights, N of M weights, neurons or layers of a residual perceptron are removed."""
    data, test = pixels(setting.train, ROWS), pixels(setting.test)
    found = list(by_granularity.variants(data, test))
    times = by_granularity.timed(found)
    rows = by_granularity.rows_of(found, times)
    return list(by_granularity.figures(found, times)), plots.accuracy_size_and_latency(rows)


def signal(setting: Setting) -> tuple[list[Figure], pictures.Figure]:
    """Conv1d and a GRU over 28 steps of 28 values: units, zeros, a file in int8 for a watch."""
    data = loader(signals(setting.train))

    def recover(model: nn.Module) -> nn.Module:
        return fit(model, data, 1, 1e-3)

    steps: list[ModuleStep] = [
        ShrinkConfig(macs=0.5), recover, PruningConfig(method="alps", sparsity=0.8), recover, WATCH,
    ]  # fmt: skip
    result = CompressionPipeline(steps).run_module(
        signal_network(setting, True), signals(setting.rows()), signals(setting.test)
    )
    rows = [dict(row) for row in result.rows]
    for row, name in zip(rows, SIGNAL_ROWS, strict=True):
        row["method"] = name
    figures = [
        Figure(
            f"signals: {row['method']}", round(100 * row["value"], 2), "%",
            round(100 * row["low"], 2), round(100 * row["high"], 2),
            note=f"{row['bytes']:,} bytes",
        )
        for row in rows
    ]  # fmt: skip
    return figures, plots.pipeline_bars(rows)


SIGNAL_ROWS = ("dense", "half the products", "trained", "80 % zeros", "trained again", "int8")
STUDIES: dict[str, Study] = {"granularity": granularity, "signals": signal}


if __name__ == "__main__":
    main()
