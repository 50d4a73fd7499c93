"""What distillation adds to a training step and to memory, beside plain fine-tuning.

    python -m benchmarks.distillation_step --json benchmarks/results/distillation_step.json

A student of three layers learns from a MiniLM-shaped teacher of six (random weights: a step takes
the same time), on rows as long as SST-2's sentences, 32 in a batch, rows of like length together.
All train on the same batches in the same order: ``Trainer`` alone, `DistillationTrainer` with the
teacher's logits kept (`TeacherCache`), and with the teacher asked in each step. Every round runs
each of them once, in turn, so that a busy moment of the machine hits all. Measured as the shipped
recipes train (bf16, embeddings frozen, plain attention) and with ``Trainer``'s own defaults
(fp32). Peak memory is that of a process of its own, libraries not counted.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks._figures import Figure, parse_arguments, report, spread
from benchmarks.prune_time import peak_of_process
from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.cache import TeacherCache
from hfcompress.distillation.student import make_student
from hfcompress.distillation.trainer import DistillationTrainer
from hfcompress.utils import quiet_libraries

ROUNDS = 5
STEPS, WARM_UP = 16, 4
ROWS = 32 * STEPS
MEMORY_STEPS = 12
MEMORY_REPETITIONS = 3
# How the student trains: arguments, whether embeddings are frozen, and its attention.
SETTINGS: dict[str, tuple[dict[str, Any], bool, str]] = {
    "as recipes train": ({"bf16": True}, True, "eager"),
    "Trainer's defaults": ({}, False, "sdpa"),
}
# What a step may take, over a plain one.
CACHED, LIVE, MEMORY = "<= 1.05", "<= 1.5", "<= 1.05"


class StepTimes(TrainerCallback):
    """Seconds from the end of one update to the end of the next: loading, teacher, everything."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def steps(self) -> list[float]:
        """Seconds of each update after the warm-up."""
        ends = self.ends[WARM_UP - 1 :]
        return [after - before for before, after in pairwise(ends)]


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(__doc__)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for setting in SETTINGS:
            figures += step_times(setting, Path(folder))
        figures += memory(Path(folder))
    report(figures, "distillation_step", arguments.json)


def step_times(setting: str, folder: Path) -> list[Figure]:
    """Milliseconds of a step, and their ratios to a plain one, round by round."""
    teacher, rows = model(), sentences()
    bf16 = bool(SETTINGS[setting][0])
    cache = build_cache(teacher, rows, folder)
    options: dict[str, dict[str, Any] | None] = {
        "plain": None,
        "kept logits": {"teacher": cache},
        "teacher asked": {"teacher": teacher, "precision": "bf16" if bf16 else "fp32"},
        "teacher asked, and hidden states": {
            "teacher": teacher, "precision": "bf16" if bf16 else "fp32", "hidden_weight": 1.0,
        },
    }  # fmt: skip
    if not bf16:
        options["teacher asked in bf16"] = {"teacher": teacher, "precision": "bf16"}
    times: dict[str, list[list[float]]] = {name: [] for name in options}
    for start in range(ROUNDS):
        names = list(options)
        for name in names[start % len(names) :] + names[: start % len(names)]:
            times[name].append(train(setting, teacher, cache.attach(rows), options[name], folder))
    targets = {"kept logits": CACHED, "teacher asked": LIVE}
    figures = [
        spread(f"{setting}: {name}", [1e3 * statistics.median(steps) for steps in rounds], "ms")
        for name, rounds in times.items()
    ]
    for name, rounds in list(times.items())[1:]:
        ratios = [
            # Each step beside the plain step on the same batch: a pause spoils one of them only.
            statistics.median(mine / plain for mine, plain in zip(steps, plain_steps, strict=True))
            for steps, plain_steps in zip(rounds, times["plain"], strict=True)
        ]
        figures.append(spread(f"{setting}: {name}, over plain", ratios, "x", targets.get(name)))
    return figures


def train(
    setting: str,
    teacher: PreTrainedModel,
    rows: Dataset,
    options: dict[str, Any] | None,
    folder: Path,
) -> list[float]:
    """Seconds of each update after the warm-up; without options it is plain fine-tuning."""
    times = StepTimes()
    trainer = trainer_of(setting, teacher, rows, options, folder, STEPS, times)
    trainer.remove_callback(PrinterCallback)  # it prints every log line
    trainer.train()
    return times.steps


def trainer_of(
    setting: str,
    teacher: PreTrainedModel,
    rows: Dataset,
    options: dict[str, Any] | None,
    folder: Path,
    steps: int,
    *callbacks: TrainerCallback,
) -> Trainer:
    given, freeze, attention = SETTINGS[setting]
    student = make_student(teacher, layers=3)
    student.set_attn_implementation(attention)
    for name, weight in student.named_parameters():
        weight.requires_grad_(not (freeze and "embeddings" in name and "LayerNorm" not in name))
    common: dict[str, Any] = {
        "output_dir": str(folder / "out"), "max_steps": steps, "report_to": [], "seed": 0,
        "per_device_train_batch_size": 32, "train_sampling_strategy": "group_by_length",
        "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no",
        "remove_unused_columns": False, "use_cpu": True, **given,
    }  # fmt: skip
    data: dict[str, Any] = {"data_collator": collate, "callbacks": list(callbacks)}
    if options is None:
        plain = rows.remove_columns("row")
        arguments = TrainingArguments(**common)
        return Trainer(model=student, args=arguments, train_dataset=plain, **data)
    return DistillationTrainer(
        model=student,
        args=DistillationArguments(
            **common,
            hidden_weight=options.get("hidden_weight", 0.0),
            teacher_precision=options.get("precision", "fp32"),
        ),
        teacher=options["teacher"],
        train_dataset=rows,
        **data,
    )


def memory(folder: Path) -> list[Figure]:
    """Peak memory that training adds to a process, kept logits over plain."""
    build_cache(model(), sentences(), folder)
    context = multiprocessing.get_context("spawn")
    peaks: dict[bool, list[int]] = {False: [], True: []}
    for _ in range(MEMORY_REPETITIONS):
        for kept, found in peaks.items():
            with context.Pool(1) as pool:
                found.append(pool.apply(peak_memory, (str(folder), kept)))
    figures = [
        spread(f"peak memory, {name}", [value / 1e6 for value in peaks[kept]], "MB")
        for name, kept in (("plain", False), ("kept logits", True))
    ]
    ratios = [mine / plain for mine, plain in zip(peaks[True], peaks[False], strict=True)]
    return [*figures, spread("peak memory, kept logits over plain", ratios, "x", MEMORY)]


def peak_memory(folder: str, kept: bool) -> int:
    """Bytes that the student and its training add to a process, at the worst moment."""
    quiet_libraries()
    before = peak_of_process()
    teacher, rows = model(), sentences()
    cache = build_cache(teacher, rows, Path(folder))  # is there already
    trainer = trainer_of(
        next(iter(SETTINGS)),
        teacher,
        cache.attach(rows),
        {"teacher": cache} if kept else None,
        Path(folder),
        MEMORY_STEPS,
    )
    del teacher
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return peak_of_process() - before


def model() -> BertForSequenceClassification:
    """MiniLM-L6's shape."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    made: BertForSequenceClassification = BertForSequenceClassification(config).train(False)
    return made


def sentences() -> Dataset:
    """Random tokens, in rows as long as SST-2's sentences: 23 tokens in the mean, 5 to 64."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.gamma(5.0, 4.6, ROWS), 5, 64).astype(int)
    return Dataset.from_dict(
        {
            "input_ids": [generator.integers(1, 30_000, length) for length in lengths],
            "labels": generator.integers(0, 2, ROWS),
        }
    )


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One padded batch."""
    tokens = [torch.as_tensor(item["input_ids"]) for item in items]
    batch = {
        "input_ids": nn.utils.rnn.pad_sequence(tokens, batch_first=True),
        "attention_mask": nn.utils.rnn.pad_sequence(
            [torch.ones_like(part) for part in tokens], batch_first=True
        ),
    }
    numbers = [name for name in ("labels", "row") if name in items[0]]
    return batch | {name: torch.tensor([item[name] for item in items]) for name in numbers}


def build_cache(teacher: nn.Module, rows: Dataset, folder: Path) -> TeacherCache:
    """The teacher's logits of all rows."""
    return TeacherCache.build(teacher, rows, collate, folder=folder / "cache")


if __name__ == "__main__":
    main()
