"""What compression costs in accuracy on Fashion-MNIST, trained from scratch on this machine.

    python -m benchmarks.vision_quality --json FILE

Models are those of recipes/fashion-mnist-resnet.yaml and recipes/fashion-mnist-vit.yaml (kept by
content hash); accuracy is that of the 10,000 test images, where one standard error is 0.27
points. The four IDX files are those of Debian's dataset-fashion-mnist, or of --data FOLDER. Each
row is kept in --work, so that a run that was cut goes on; --only NAME makes one row (--only list
names them) and no table.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from benchmarks._channel_rows import BATCH, ROWS, SPEEDUP, channel_rows, inputs_of
from benchmarks._channel_rows import POINTS as CHANNEL_POINTS
from benchmarks._clock import CpuClock
from benchmarks._figures import Figure, parse_arguments, report
from benchmarks._rows import after_step, kept_row
from benchmarks._vision import Row, RowMaker, Setting, model_row, trained_minutes
from benchmarks._vision_int8_rows import INT8_POINTS, int8_figures, int8_rows
from hfcompress.measure.size import count_parameters
from hfcompress.recipes.step_configs import DistillConfig
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.shrink import shrink
from hfcompress.utils import quiet_libraries

RESNET, VIT = "fashion-mnist-resnet", "fashion-mnist-vit"
TAUGHT = "student of the ResNet with 10 times fewer parameters"
ALONE = "the same student without a teacher"
SEEDS = (0, 1)
STUDENT_POINTS = 1.5
MINUTES = 10.0
# Row -> points that may be lost against its dense model.
POINTS = {
    "ResNet, 90 % zeros, recovered": 0.5,
    "ViT, heads and neurons at 50 % of MACs, recovered": 0.7,
    **CHANNEL_POINTS,
    **INT8_POINTS,
}
# Rows that must be as many times faster as `SPEEDUP` says.
FASTER = ("ResNet, channels at 22 % of MACs, recovered",)
DENSE_ACCURACY = 92.5
# The student: how many times fewer parameters, and the multiple in which its channels come.
FEWER, MULTIPLE = 12, 8
TRAINING: dict[str, Any] = {
    "epochs": 12, "batch_size": 128, "learning_rate": 4e-3, "schedule": "cosine", "warmup": 0.1,
    "weight_decay": 0.02, "bf16": True, "channels_last": True,
    "image_augmentation": {"flip": 0.5, "shift": 2},
}  # fmt: skip


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__,
        data="folder with the four IDX files",
        work="folder of the rows",
        only="make one row only; list names them",
    )
    makers = all_rows()
    if arguments.only == "list":
        Console().print("\n".join(makers))
        return
    work = Path(arguments.work or "runs/vision_quality")
    overrides = (f"data.path={arguments.data}",) if arguments.data else ()
    setting = Setting(work, overrides)
    rows = {}
    for name in [arguments.only] if arguments.only else makers:
        path = work / "rows" / f"{name.replace(' ', '-')}.json"
        rows[name] = row = kept_row(path, Row, partial(makers[name], setting))
        told = f"{row.accuracy:.2%} ({row.points:+.2f} points), {row.minutes:.1f} min"
        Console(stderr=True, highlight=False).print(f"{name}: {told}")
    if not arguments.only:
        report(figures(rows), "vision_quality", arguments.json)


def all_rows() -> dict[str, RowMaker]:
    """Every row by name, in the order in which they are made."""
    return {
        "dense ResNet": partial(dense, RESNET),
        "ResNet, 90 % zeros, recovered": partial(own_steps, RESNET, "resnet 90"),
        **{
            f"{name}, seed {seed}": partial(student, taught, seed)
            for seed in SEEDS
            for name, taught in ((TAUGHT, True), (ALONE, False))
        },
        "dense ViT": partial(dense, VIT),
        "ViT, heads and neurons at 50 % of MACs, recovered": partial(own_steps, VIT, "vit half"),
        **channel_rows(),
        **int8_rows(RESNET),
    }


def dense(recipe: str, setting: Setting) -> Row:
    """A model trained from scratch; its minutes are those of its training, kept with it."""
    row = setting.dense(recipe)
    return Row(row["value"], row["value"], trained_minutes(row), row["parameters"])


def own_steps(recipe: str, name: str, setting: Setting) -> Row:
    """The recipe as it is shipped."""
    return setting.compressed(recipe, name, None)


def student(taught: bool, seed: int, setting: Setting) -> Row:
    """The ResNet's most useful channels, taught by the whole of it; or, without a teacher, the
    same shapes from scratch on the labels."""
    context = setting.context(RESNET, seed)
    model = context.dense_model()
    calibration = context.calibration(ROWS, seed)
    clock = CpuClock()
    fewer = count_parameters(model) // FEWER
    shrink(model, ShrinkConfig(parameters=fewer, multiple_of=MULTIPLE), calibration)
    if not taught:
        from_scratch(model, seed)
    step = DistillConfig(
        **TRAINING,
        distillation={"alpha": 0.9 if taught else 0.0, "temperature": 4.0},  # type: ignore[arg-type]
    )
    model = after_step(model, step, context)
    return model_row(model, context, clock.minutes, inputs_of(calibration))


def from_scratch(model: nn.Module, seed: int) -> None:
    """Weights as transformers draws those of a new ResNet."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.Linear)):
            module.reset_parameters()


def figures(rows: dict[str, Row]) -> list[Figure]:
    """Accuracies, points against the dense model, minutes."""
    found = []
    for name, row in rows.items():
        if ", seed " in name:
            continue  # _students has their mean
        note = f"{row.parameters:,} parameters, {row.minutes:.1f} minutes"
        if name.startswith("dense"):
            target = f">= {DENSE_ACCURACY:g}" if name == "dense ResNet" else None
            found.append(Figure(f"{name}, accuracy", 100 * row.accuracy, "%", target=target,
                                note=note))  # fmt: skip
            continue
        target = f">= {-POINTS[name]:g}" if name in POINTS else None
        shares = {what: row.more[what] for what in ("macs", "bytes", "sparsity")}
        note += "".join(f", {share:.1%} {what}" for what, share in shares.items())
        found.append(Figure(f"{name}, points", row.points, "points", target=target, note=note))
    return [*found, *_students(rows), *_faster(rows), *int8_figures(rows), _slowest(rows)]


def _faster(rows: dict[str, Row]) -> list[Figure]:
    """Smaller networks beside the dense one in the same engine, `BATCH` images at a time."""
    return [
        Figure(
            f"{name}, times faster, {engine}, {BATCH} images",
            round(row.more[f"speedup_{engine}"], 2),
            "x",
            target=f">= {SPEEDUP:g}" if name in FASTER else None,
        )
        for name, row in rows.items()
        for engine in ("torch", "torch, channels last", "onnxruntime")
        if f"speedup_{engine}" in row.more
    ]


def _students(rows: dict[str, Row]) -> list[Figure]:
    """Means over seeds, with the worst and the best."""
    taught, alone = ([rows[f"{name}, seed {seed}"] for seed in SEEDS] for name in (TAUGHT, ALONE))
    found = []
    for name, some, target in ((TAUGHT, taught, f">= {-STUDENT_POINTS:g}"), (ALONE, alone, None)):
        points = [row.points for row in some]
        note = (
            f"{some[0].parameters:,} parameters, {len(some)} seeds, {some[0].minutes:.1f} minutes"
        )
        mean = round(statistics.mean(points), 2)
        found.append(
            Figure(f"{name}, points", mean, "points", min(points), max(points), target, note)
        )
    fewer = rows["dense ResNet"].parameters / taught[0].parameters
    pairs = [
        100 * (one.accuracy - other.accuracy) for one, other in zip(taught, alone, strict=True)
    ]
    gained, low, high = (round(of(pairs), 2) for of in (statistics.mean, min, max))
    return [
        *found,
        Figure("student, times fewer parameters", round(fewer, 1), "x", target=">= 10"),
        # Less than a standard error of one model's accuracy is no gain.
        Figure("student, points gained by the teacher", gained, "points", low, high, ">= 0.27"),
    ]


def _slowest(rows: dict[str, Row]) -> Figure:
    slowest = max(row.minutes for row in rows.values())
    return Figure("slowest row", round(slowest, 1), "min", target=f"<= {MINUTES:g}")


if __name__ == "__main__":
    main()
