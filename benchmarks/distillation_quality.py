"""How close students come to their teacher, beside others' ways to train the same students.

    python -m benchmarks.distillation_quality --data FOLDER --json FILE

The teacher is MiniLM-L6 fine-tuned on SST-2 (recipes/minilm-sst2-teacher.yaml, kept by content
hash), anew for each seed: one fine-tuning is lucky and the next is not, and students of a lucky one
look worse than they are. Accuracy is that of the 872 dev sentences, where one standard error is 1.1
points. Ours are recipes/distill-minilm-3layer.yaml with other sizes of the student, and
recipes/distill-to-cnn.yaml. Beside them: the same students fine-tuned on the labels without a
teacher, a bare KL loop, and TextBrewer (pip install --no-deps textbrewer==0.2.1.post1). Minutes are
CPU minutes of each of torch's threads: on a quiet machine what the wall clock says. FOLDER holds
train.tsv and dev.tsv; without it the hub's GLUE is read. Each student's row is kept in --work, so
that a run that was cut goes on; --only NAME makes one row (--only list names them) and no table,
--only kept tables the rows that are there and makes none.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from benchmarks._clock import CpuClock
from benchmarks._distillation_peers import (
    EPOCHS,
    bare_kl_loop,
    textbrewer,
    textbrewer_missing,
)
from benchmarks._figures import Figure, parse_arguments, report
from benchmarks._rows import DenseSetting, after_step, kept_row
from benchmarks.oneshot_quality import teacher_folder
from hfcompress.distillation.student import choose_layers, make_student
from hfcompress.distillation.text_student import TextStudentConfig, make_text_student
from hfcompress.measure.latency import measure_latency
from hfcompress.measure.size import count_parameters
from hfcompress.models.architectures import blocks
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import Recipe, load_recipe
from hfcompress.recipes.step_configs import DistillConfig, FinetuneConfig, parse_steps
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import prepare
from hfcompress.utils import Progress, quiet_libraries

SEEDS = (0, 1, 2)
MINUTES = 8.0
# Students by name: their sizes, and the points against the teacher that are to be reached.
STUDENTS: dict[str, tuple[dict[str, Any], float]] = {
    "3 layers": ({"layers": 3}, 0.0),
    "2 layers, half the FFN": ({"layers": 2, "ffn": 768}, -1.5),
    "1 layer": ({"layers": 1}, -4.0),
    "3 layers, half the FFN": ({"layers": 3, "ffn": 768}, 0.0),
}
# Those that start further from the teacher learn longer than the recipe says; they are faster, too.
LONGER = {"2 layers, half the FFN": 10.0, "1 layer": 12.0}
# DistilBERT's claim, beaten: this student, share of the accuracy, share of the weights, speed.
CLAIM, SHARE, LEFT, FASTER = "3 layers, half the FFN", 99.5, 40.0, 2.4
# The CNN: points against the teacher, points over itself without one, weights; and the points
# over itself without a teacher of the student of three layers.
CNN_POINTS, CNN_GAIN, CNN_WEIGHTS = -5.0, 2.0, 1e6
GAIN = 1.5


@dataclass(frozen=True)
class Row:
    """One trained student.

    Attributes:
        accuracy: on dev, in [0, 1].
        minutes: of training, CPU minutes of each of torch's threads (`CpuClock`); what the teacher
            says is computed in them.
        weights: of the encoder, or beside the embedding where there is no encoder.
        teacher: the teacher's accuracy.
    """

    accuracy: float
    minutes: float
    weights: int
    teacher: float


@dataclass(frozen=True)
class Setting(DenseSetting):
    """What all students of one teacher share; ``model`` is the teacher."""

    steps: dict[str, DistillConfig]
    teacher: float


Train = Callable[[Setting], PreTrainedModel]


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__,
        data="folder with train.tsv and dev.tsv",
        work="folder of the rows",
        only="make one row only; list names them; kept: table what is there",
    )
    console = Console(stderr=True, highlight=False)
    trainings = all_trainings()
    if arguments.only == "list":
        Console().print("\n".join(trainings))
        return
    work = Path(arguments.work or "runs/distillation_quality")
    overrides = [f"data.path={arguments.data}"] if arguments.data else []
    setting_of = functools.cache(partial(prepare_setting, work, overrides))
    wanted = [arguments.only] if arguments.only else [*trainings]
    if arguments.only == "kept":
        wanted = [name for name in trainings if (work / "rows" / f"{name}.json").is_file()]
    rows = {}
    for name in wanted:
        rows[name] = kept_row(
            work / "rows" / f"{name}.json",
            Row,
            partial(measured, *trainings[name], setting_of),
        )
        row = rows[name]
        console.print(f"{name}: {row.accuracy:.2%}, {row.minutes:.1f} min, {row.weights:,} weights")
    if arguments.only in (None, "kept"):
        report(figures(rows, setting_of(0).model), "distillation_quality", arguments.json)


def prepare_setting(work: Path, overrides: list[str], seed: int) -> Setting:
    """The teacher fine-tuned with a seed, the rows, and the recipes' steps."""
    teacher = teacher_folder(work, overrides, seed)
    steps = {}
    for name in ("distill-minilm-3layer", "distill-to-cnn"):
        recipe = load_recipe(find_recipe(name), overrides)
        steps[name] = _distill_step(recipe)
    plain = load_recipe(find_recipe("distill-minilm-3layer"), [f"model={teacher}", *overrides])
    last = tuple(step for step in plain.steps if "distill" in step)
    setting = Setting(prepare(plain.replace(steps=last), Progress(), StepCache()), steps, 0.0)
    return replace(setting, teacher=setting.accuracy(setting.model))


def _distill_step(recipe: Recipe) -> DistillConfig:
    found = [step.config for step in parse_steps(recipe.steps)]
    (step,) = [config for config in found if isinstance(config, DistillConfig)]
    return step


def all_trainings() -> dict[str, tuple[Train, int]]:
    """Every student by name: how it is trained, and its teacher's seed."""
    trainings: dict[str, tuple[Train, int]] = {}
    for name, (sizes, _) in STUDENTS.items():
        for seed in SEEDS if name == "3 layers" else SEEDS[:1]:
            trainings[f"ours, {name}, seed {seed}"] = partial(ours, name, seed), seed
            alone = partial(labels_only, sizes, seed)
            trainings[f"labels only, {name}, seed {seed}"] = alone, seed
    trainings["ours, CNN"] = ours_cnn, 0
    trainings["labels only, CNN"] = cnn_labels_only, 0
    peers = {"bare KL loop": bare_kl_loop}
    if textbrewer_missing() is None:
        peers["TextBrewer"] = by_textbrewer
    for seed in SEEDS:
        for name, peer in peers.items():
            trainings[f"{name}, 3 layers, seed {seed}"] = partial(by_peer, peer), seed
    return trainings


def measured(train: Train, seed: int, setting_of: Callable[[int], Setting]) -> Row:
    """Train a student of the teacher of a seed and measure it."""
    setting = setting_of(seed)
    clock = CpuClock()
    model = train(setting)
    minutes = clock.minutes
    return Row(setting.accuracy(model), minutes, encoder_weights(model), setting.teacher)


# --- training ----------------------------------------------------------------------------------


def ours(name: str, seed: int, setting: Setting) -> PreTrainedModel:
    step = setting.steps["distill-minilm-3layer"]
    assert step.student is not None
    student = step.student.replace(**STUDENTS[name][0])
    epochs = LONGER.get(name, step.epochs)
    return distilled(step.replace(student=student, epochs=epochs), seed, setting)


def ours_cnn(setting: Setting) -> PreTrainedModel:
    return distilled(setting.steps["distill-to-cnn"], 0, setting)


def distilled(step: DistillConfig, seed: int, setting: Setting) -> PreTrainedModel:
    return after_step(setting.model, step, setting.context(seed))


def labels_only(sizes: dict[str, Any], seed: int, setting: Setting) -> PreTrainedModel:
    """The same start, fine-tuned as the teacher was."""
    return fine_tuned(make_student(setting.model, **sizes), seed, setting)


def cnn_labels_only(setting: Setting) -> PreTrainedModel:
    config = setting.steps["distill-to-cnn"].text_student or TextStudentConfig()
    step = setting.steps["distill-to-cnn"]
    student = make_text_student(setting.model, config)
    return fine_tuned(student, 0, setting, step.learning_rate)


def fine_tuned(
    student: PreTrainedModel, seed: int, setting: Setting, rate: float = 8e-5
) -> PreTrainedModel:
    config = FinetuneConfig(epochs=EPOCHS, batch_size=32, learning_rate=rate, bf16=True)
    return after_step(student, config, setting.context(seed))


def by_peer(train: Callable[..., None], setting: Setting) -> PreTrainedModel:
    teacher, rows = setting.model, setting.bench.train
    assert rows is not None
    student = make_student(teacher, layers=3)
    train(student, teacher, rows)
    return student


def by_textbrewer(student: PreTrainedModel, teacher: PreTrainedModel, rows: Any) -> None:
    textbrewer(student, teacher, rows, list(choose_layers(teacher, 3)))


# --- figures -----------------------------------------------------------------------------------


def figures(rows: dict[str, Row], teacher: PreTrainedModel) -> list[Figure]:
    """The rows against what is to be reached."""
    levels = sorted({100 * row.teacher for row in rows.values()})
    note = f"{len(levels)} seeds"
    mean = statistics.mean(levels)
    made = [Figure("teacher, accuracy", mean, "%", levels[0], levels[-1], note=note)]
    aims = {f"ours, {name}": f">= {points:g}" for name, (_, points) in STUDENTS.items()}
    del aims[f"ours, {CLAIM}"]  # it has figures of its own below
    aims["ours, CNN"] = f">= {CNN_POINTS:g}"
    for name in dict.fromkeys(name.rpartition(", seed ")[0] or name for name in rows):
        made.append(against(name, rows, aims.get(name)))
    reason = textbrewer_missing()
    if reason is not None:
        Console(stderr=True).print(f"TextBrewer is left out: {reason}")
    made += gain("3 layers", rows, GAIN)
    made += gain("CNN", rows, CNN_GAIN)
    for row in seeds("ours, CNN", rows):
        target = f"<= {CNN_WEIGHTS:g}"
        made.append(Figure("CNN, weights beside the words", row.weights, "", target=target))
    slowest = max(row.minutes for name, row in rows.items() if name.startswith("ours"))
    made.append(
        Figure("ours, slowest student, minutes", round(slowest, 1), "min", target=f"<= {MINUTES:g}")
    )
    for row in seeds(f"ours, {CLAIM}", rows):
        made += claim(row, teacher)
    return made


def against(name: str, rows: dict[str, Row], target: str | None = None) -> Figure:
    """Points of a student against its teacher: the mean over seeds, with the worst and best."""
    found = seeds(name, rows)
    points = [100 * (row.accuracy - row.teacher) for row in found]
    mean = round(statistics.mean(points), 2)
    minutes = statistics.mean(row.minutes for row in found)
    note = f"{minutes:.1f} min, {found[0].weights:,} weights"
    low, high = None, None
    if len(found) > 1:
        low, high, note = min(points), max(points), f"{len(found)} seeds, {note}"
    return Figure(f"{name}, points", mean, "points", low, high, target, note)


def seeds(name: str, rows: dict[str, Row]) -> list[Row]:
    return [row for key, row in rows.items() if key == name or key.startswith(f"{name}, seed")]


def gain(student: str, rows: dict[str, Row], target: float) -> list[Figure]:
    """What the teacher is worth: ours less the same student without it, means over seeds."""
    found = [seeds(f"{who}, {student}", rows) for who in ("ours", "labels only")]
    if not all(found):
        return []
    ours_, alone = (statistics.mean(row.accuracy for row in part) for part in found)
    title, points = f"{student}, points over labels only", round(100 * (ours_ - alone), 2)
    return [Figure(title, points, "points", target=f">= {target:g}")]


def claim(row: Row, teacher: PreTrainedModel) -> list[Figure]:
    """DistilBERT's claim with our student: accuracy kept, weights left, speed in one engine."""
    student = make_student(teacher, **STUDENTS[CLAIM][0])
    left = 100 * row.weights / encoder_weights(teacher)
    kept = 100 * row.accuracy / row.teacher
    made = [
        Figure(f"{CLAIM}, accuracy kept", round(kept, 2), "%", target=f">= {SHARE:g}"),
        Figure(f"{CLAIM}, encoder weights left", round(left, 1), "%", target=f"<= {LEFT:g}"),
    ]
    for size in (1, 32):
        ids = torch.randint(1000, 5000, (size, 32))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        times = measure_latency(
            {"teacher": partial(teacher, **inputs), "student": partial(student, **inputs)},
            warmup=5, repeats=30,
        )  # fmt: skip
        ratio = times.ratio("teacher", "student")
        name = f"{CLAIM}, times faster, torch fp32, {size}x32 tokens"
        target = f">= {FASTER:g}" if size == 32 else None
        made.append(Figure(name, round(ratio.median, 2), "x", ratio.low, ratio.high, target))
    return made


def encoder_weights(model: PreTrainedModel) -> int:
    """Parameters of the layers; of a model without layers, all but its embedding."""
    layers = blocks(model) if model.config.model_type != "hfcompress-text" else {}
    if layers:
        return sum(count_parameters(layer) for layer in layers.values())
    return count_parameters(model) - count_parameters(model.get_input_embeddings())


if __name__ == "__main__":
    main()
