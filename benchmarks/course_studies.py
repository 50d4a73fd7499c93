"""Studies that teach what compression does, each with its picture, on Fashion-MNIST.

    python -m benchmarks.course_studies --json benchmarks/results/course_studies.json \
        --pictures docs/studies

The data are those of `benchmarks.course`, whose --work folder gives the trained student. The other
networks are small, such as the perceptron 784-300-100-10. --only NAME makes one study (--only list
says which).
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import figure as pictures
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks._course import (
    Perceptron,
    Right,
    Setting,
    accuracy,
    fit,
    loader,
    make_figures,
    pixels,
    right,
)
from benchmarks._figures import Figure
from benchmarks.course import student
from hfcompress import (
    PruningConfig,
    PruningTrainingConfig,
    dequantize_layer_weights,
    distill,
    find_ticket,
    keep_zeros,
    plots,
    prune,
    quantize_layer_weights,
)
from hfcompress.pruning.keep_zeros import at_each_step
from hfcompress.pruning.targets import weight_matrices
from hfcompress.pruning.training_config import LotteryConfig, ProgressiveConfig
from hfcompress.pruning.training_masks import TrainingMasks
from hfcompress.report.plotting import colour_of, new_figure, png_bytes, style_bar_axes
from hfcompress.utils import atomic_write

BITS = (8, 6, 5, 4, 3, 2)
ROWS = 10_000
"""Training images of the perceptron: its epochs take half a second."""
BUDGET = 8
"""Epochs of each way to reach a sparsity, the dense training included."""
SPARSITIES = (0.8, 0.9, 0.95, 0.98)
TEMPERATURES, ALPHAS = (1.0, 2.0, 4.0, 8.0, 16.0), (0.0, 0.5, 0.9, 1.0)
SEEDS = (0, 1)
Study = Callable[[Setting], tuple[list[Figure], pictures.Figure]]
"""Figures and their picture."""
Row = dict[str, Any]


def main() -> None:
    """Make every study that is not there yet, and write them all."""
    make_studies("course_studies", __doc__, STUDIES)


def make_studies(benchmark: str, text: str | None, studies: Mapping[str, Study]) -> None:
    """Make the studies that are not there yet, their pictures too, and write them all."""

    def made(name: str, setting: Setting, arguments: argparse.Namespace) -> list[Figure]:
        folder = Path(arguments.pictures or setting.work / "studies")
        figures, drawn = studies[name](setting)
        atomic_write(folder / f"{name}.png", png_bytes(drawn))
        return figures

    options = {"pictures": "folder of the pictures"}
    make_figures(benchmark, text, list(studies), made, "studies", **options)


# --- networks, data, rows ----------------------------------------------------------------------


def row_of(method: str, hits: Right, sparsity: float, seed: int = 0) -> Row:
    """A row as a run's folder has it."""
    low, high = _interval(hits)
    return {
        "method": method, "value": float(hits.mean()), "low": low, "high": high, "n": len(hits),
        "metric": "accuracy", "requested_sparsity": sparsity, "actual_sparsity": sparsity,
        "settings": {}, "steps": [], "seed": seed,
    }  # fmt: skip


def _interval(hits: Right) -> tuple[float, float]:
    found = accuracy("", hits)
    return (found.low or 0) / 100, (found.high or 0) / 100


def figures_of(study: str, rows: Sequence[Row]) -> list[Figure]:
    """One figure for each method and sparsity: the mean of the seeds, and their range."""
    found = []
    keys = dict.fromkeys((row["method"], row["requested_sparsity"]) for row in rows)
    for method, sparsity in keys:
        same = [r for r in rows if (r["method"], r["requested_sparsity"]) == (method, sparsity)]
        values = [round(100 * row["value"], 2) for row in same]
        ends = (min(values), max(values)) if len(values) > 1 else (None, None)
        name = f"{study}: {method}" + (f" {100 * sparsity:g} %" if sparsity else "")
        found.append(Figure(name, round(float(np.mean(values)), 2), "%", *ends))
    return found


# --- the studies -------------------------------------------------------------------------------


def bits(setting: Setting) -> tuple[list[Figure], pictures.Figure]:
    """Weights of the course's student rounded to fewer and fewer bits, nothing trained."""
    model = student(setting)
    values: dict[str, dict[int, float]] = {}
    for way in ("per channel", "per tensor"):
        values[way] = {
            count: float(setting.right(rounded(model, count, way == "per channel")).mean())
            for count in BITS
        }
    dense = float(setting.right(model).mean())
    figures = [Figure("bits: fp32", round(100 * dense, 2), "%")]
    for way, line in values.items():
        figures += [
            Figure(f"bits: {count}, {way}", round(100 * value, 2), "%")
            for count, value in line.items()
        ]
    return figures, plots.bit_widths(values, dense=dense)


def rounded(model: nn.Module, count: int, per_channel: bool = True) -> nn.Module:
    """A copy whose weight matrices are on a grid of so many bits."""
    copied = copy.deepcopy(model)
    for module in weight_matrices(copied).values():
        weight = module.get_parameter("weight")
        grid = quantize_layer_weights(weight, count, per_channel=per_channel)
        weight.data = dequantize_layer_weights(grid)
    return copied


def schedules(setting: Setting) -> tuple[list[Figure], pictures.Figure]:
    """One shot, iterative, gradual, lottery: the same epochs in all."""
    data, test = pixels(setting.train, ROWS), pixels(setting.test)
    ways: dict[str, Callable[[nn.Module, float, TensorDataset], object]] = {
        "one shot": one_shot, "iterative": iterative, "gradual": gradual, "lottery": lottery,
    }  # fmt: skip
    rows = []
    for seed in SEEDS:
        dense = fit(_perceptron(seed), loader(data, seed), BUDGET)
        rows.append(row_of("dense", right(dense, test), 0.0, seed))
        for (name, way), sparsity in itertools.product(ways.items(), SPARSITIES):
            model = _perceptron(seed)
            way(model, sparsity, data)
            rows.append(row_of(name, right(model, test), sparsity, seed))
    return figures_of("schedules", rows), plots.accuracy_curve(rows)


def _perceptron(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Perceptron(300, 100)


def _smallest_go(model: nn.Module, sparsity: float) -> None:
    prune(model, PruningConfig(method="magnitude", scope="global", sparsity=sparsity))


def one_shot(model: nn.Module, sparsity: float, data: TensorDataset) -> None:
    """Train, prune once, train again."""
    fit(model, loader(data), BUDGET // 2)
    _smallest_go(model, sparsity)
    fit(model, loader(data, 1), BUDGET // 2, holds_zeros=True)


def iterative(model: nn.Module, sparsity: float, data: TensorDataset) -> None:
    """Train, then prune and train in turns."""
    fit(model, loader(data), BUDGET // 2)
    rounds = BUDGET // 2
    for share in ProgressiveConfig(sparsity=sparsity, rounds=rounds).sparsities():
        _smallest_go(model, share)
        fit(model, loader(data, 1), 1, holds_zeros=True)


def gradual(model: nn.Module, sparsity: float, data: TensorDataset) -> None:
    """Prune more and more in one training (1710.01878)."""
    batches, steps = loader(data), 0
    config = PruningTrainingConfig(sparsity=sparsity, scope="global", warmup=0.25)
    masks = TrainingMasks(model, config, BUDGET * len(batches))

    def after() -> None:
        nonlocal steps
        steps += 1
        masks.after_step()
        masks.update(steps)

    with at_each_step(model, masks.before_step, after):
        fit(model, batches, BUDGET)


def lottery(model: nn.Module, sparsity: float, data: TensorDataset) -> None:
    """Train, prune and rewind, three times (1912.05671)."""
    config = LotteryConfig(sparsity=sparsity, rounds=3, rewind_step=50)
    find_ticket(model, config, lambda net: fit(net, loader(data), BUDGET // 4))


def temperatures(setting: Setting) -> tuple[list[Figure], pictures.Figure]:
    """A student of 32 neurons that has 6,000 labels, and a teacher that had 60,000."""
    teacher = _wide_perceptron(setting)
    data, test = pixels(setting.train, 6000), pixels(setting.test)
    values: dict[float, dict[float, float]] = {alpha: {} for alpha in ALPHAS}
    spread: dict[tuple[float, float], list[float]] = {}
    for alpha, temperature in itertools.product(ALPHAS, TEMPERATURES):
        if alpha == 0 and temperature != TEMPERATURES[0]:  # without a teacher it has no effect
            values[alpha][temperature] = values[alpha][TEMPERATURES[0]]
            continue
        found = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            model = Perceptron(32)
            distill(
                teacher, model, loader(data, seed), epochs=10, temperature=temperature,
                alpha=alpha, learning_rate=3e-3,
            )  # fmt: skip
            found.append(float(right(model, test).mean()))
        spread[alpha, temperature] = found
        values[alpha][temperature] = float(np.mean(found))
    figures = []
    for (alpha, temperature), found in spread.items():
        name = f"temperature {temperature:g}, alpha {alpha:g}" if alpha else "labels alone"
        ends = (round(100 * min(found), 2), round(100 * max(found), 2))
        figures.append(
            Figure(f"temperatures: {name}", round(100 * float(np.mean(found)), 2), "%", *ends)
        )
    return figures, plots.settings_heatmap(values, "alpha", "temperature")


def _wide_perceptron(setting: Setting) -> nn.Module:
    def train() -> nn.Module:
        torch.manual_seed(0)
        return fit(Perceptron(300, 100), loader(pixels(setting.train)), 5)

    return setting.kept("perceptron", partial(Perceptron, 300, 100), train)


def orders(setting: Setting) -> tuple[list[Figure], pictures.Figure]:
    """The same three steps in each order; every file ends with 90 % zeros and 4 bits."""
    teacher, names = _wide_perceptron(setting), ("prune", "distill", "quantize")
    data, test = pixels(setting.train, ROWS), pixels(setting.test)
    rows = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        start = fit(Perceptron(100, 50), loader(data, seed), 4)
        rows.append(row_of("dense", right(start, test), 0.0, seed))
        for order in itertools.permutations(names):
            model = copy.deepcopy(start)
            for name in order:
                model = _step(name, model, teacher, data, seed)
            model = rounded(model, 4)  # again, where training has moved the weights
            rows.append(row_of(", ".join(order), right(model, test), 0.0, seed))
    figures = figures_of("orders", rows)
    return figures, bars([figure.name.removeprefix("orders: ") for figure in figures], figures)


def _step(
    name: str, model: nn.Module, teacher: nn.Module, data: TensorDataset, seed: int
) -> nn.Module:
    if name == "quantize":
        return rounded(model, 4)
    if name == "prune":
        _smallest_go(model, 0.9)
        return model
    batches = loader(data, seed)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    has_zeros = any(float((p == 0).float().mean()) > 0.5 for p in model.parameters())
    with keep_zeros(model, optimizer) if has_zeros else nullcontext():
        distill(teacher, model, batches, epochs=5, alpha=0.7, optimizer=optimizer)
    return model


def bars(names: Sequence[str], figures: Sequence[Figure]) -> pictures.Figure:
    """A bar for each value, with the range of the seeds."""
    drawn = new_figure(7.0, 0.5 + 0.42 * len(figures))
    axes = drawn.add_subplot()
    style_bar_axes(axes)
    places = range(len(figures))
    values = [figure.value for figure in figures]
    ends = [[v - (f.low or v), (f.high or v) - v] for v, f in zip(values, figures, strict=True)]
    axes.barh(places, values, 0.62, xerr=np.array(ends).T, color=colour_of(0))
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(min(values) - 3, 100)
    axes.set_xlabel("accuracy (%)")
    for place, value in zip(places, values, strict=True):
        axes.text(99.5, place, f"{value:.1f}", ha="right", va="center", fontsize=9)
    return drawn


STUDIES: dict[str, Study] = {
    "bits": bits,
    "schedules": schedules,
    "temperatures": temperatures,
    "orders": orders,
}


if __name__ == "__main__":
    main()
