"""The course's text classifier: MiniLM-L6 fine-tuned on SST-2, and its row on a phone engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks._course import Right, accuracy, lost
from benchmarks._figures import Figure
from benchmarks._rows import DenseSetting
from benchmarks.oneshot_quality import Lines, recipe
from hfcompress import QuantizationConfig, QuantizedModel, measure_latency, quantize
from hfcompress.data.columns import column_texts
from hfcompress.inference import predict
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import load_recipe
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import prepare
from hfcompress.sweep.run import run
from hfcompress.utils import Progress

LENGTH = 64
"""Tokens of a sentence, padding included; longer ones are cut."""
CALIBRATION_ROWS, ROUNDS = 256, 50
TRAINING = ("finetune.epochs=1",)
SHRINKING = ("shrink.macs=0.5", "shrink.calibration_rows=512", "measure.latency=[]")
"""Changes to recipes/minilm-sst2-teacher.yaml and recipes/compress-10mb.yaml: engines are compared
that run the same weights, so that little training suffices."""
Rows = list[dict[str, Tensor]]
"""Sentences, each [1, LENGTH]."""
Labels = NDArray[np.int64]
# fmt: off
ENGINES = {
    "LiteRT": {"backend": "litert", "mode": "dynamic"},
    "ONNX Runtime": {"backend": "onnxruntime", "mode": "dynamic"},
    "OpenVINO": {"backend": "openvino", "mode": "static"},
}
# fmt: on


@dataclass(frozen=True)
class Sentences:
    """The fine-tuned model and its data.

    Attributes:
        work: folder of what is trained.
        data: folder with train.tsv and dev.tsv of SST-2; None takes the hub's.
    """

    work: Path
    data: str | None = None

    @property
    def overrides(self) -> list[str]:
        """Fields of a recipe that reads the data."""
        return [f"data.path={self.data}"] if self.data else []

    @cached_property
    def teacher(self) -> str:
        """Folder of the model, fine-tuned for one epoch."""
        plan = load_recipe(find_recipe("minilm-sst2-teacher"), [*self.overrides, *TRAINING])
        run(plan, self.work / "teacher", Lines())
        return str(next((self.work / "teacher" / "models").iterdir()))

    @cached_property
    def setting(self) -> DenseSetting:
        """The fine-tuned model, and the rows encoded for it."""
        plan = recipe("shrink-half", self.teacher, self.overrides)
        return DenseSetting(prepare(plan, Progress(), StepCache()))

    def right(self, model: PreTrainedModel) -> Right:
        """Which of the dev sentences a torch model knows."""
        rows = self.setting.bench.eval
        return np.asarray(predict(model, rows, 32).argmax(1) == rows.labels)

    def half(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Half of the multiply-accumulates, and the tokens of the training rows; nothing trained.

        The steps `shrink` and `vocabulary` of recipes/compress-10mb.yaml, at another budget.
        """
        changes = [*self.overrides, *SHRINKING, "measure.every_step=false"]
        plan = recipe("compress-10mb", self.teacher, changes)
        steps = tuple(step for step in plan.steps if {"shrink", "vocabulary"} & set(step))
        run(plan.replace(steps=steps), self.work / "half", Lines())
        (saved,) = (self.work / "half" / "models").iterdir()
        model = AutoModelForSequenceClassification.from_pretrained(saved)
        return model.eval(), AutoTokenizer.from_pretrained(saved)

    def encoded(self, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> tuple[Rows, Labels]:
        """Rows of one shape, and their labels."""
        texts = column_texts(rows, self.setting.bench.examples.columns)
        found = tokenizer(
            texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        split = [{name: t[i : i + 1] for name, t in found.items()} for i in range(len(texts))]
        return split, np.array(rows["label"][:])


def phone(sentences: Sentences) -> Iterator[Figure]:
    """Half of MiniLM in int8 in LiteRT, beside the same in ONNX Runtime and OpenVINO.

    Raises:
        MissingExtraError: an engine is not installed.
    """
    model, tokenizer = sentences.half()
    examples = sentences.setting.bench.examples
    assert examples.train is not None
    calibration, _ = sentences.encoded(tokenizer, examples.train.select(range(CALIBRATION_ROWS)))
    rows, labels = sentences.encoded(tokenizer, examples.eval)
    small = {
        name: quantize(model, QuantizationConfig.from_dict(config), calibration)
        for name, config in ENGINES.items()
    }
    hits = {name: right(engine, rows, labels) for name, engine in small.items()}
    dense = sentences.right(sentences.setting.model)
    yield accuracy("MiniLM on SST-2, accuracy", dense)
    for name, engine in small.items():
        label = f"half of MiniLM, int8 in {name}"
        target = "<= 12" if name == "LiteRT" else None
        yield Figure(f"{label}, size", round(engine.bytes / 1e6, 2), "MB", target=target)
        yield lost(f"{label}, lost", dense, hits[name])
    yield lost("half of MiniLM, LiteRT, lost against ONNX Runtime", hits["ONNX Runtime"],
               hits["LiteRT"], 0.5)  # fmt: skip
    yield from times_of(small, rows[0])


def right(model: QuantizedModel, rows: Sequence[Mapping[str, Tensor]], labels: Labels) -> Right:
    """Whether a model gives the right class, row by row."""
    classes = [int(model.logits(row).argmax(1)[0]) for row in rows]
    return np.asarray(np.array(classes) == labels)


def times_of(models: Mapping[str, QuantizedModel], row: Mapping[str, Tensor]) -> Iterator[Figure]:
    """Median milliseconds of each engine in turns, with the quartiles, and LiteRT's ratios."""
    full = {**row, "attention_mask": row["attention_mask"].new_ones(1, LENGTH)}
    calls: dict[str, Callable[[], object]] = {
        name: partial(model.logits, full) for name, model in models.items()
    }
    times = measure_latency(calls, repeats=ROUNDS, seconds=5, settle=1)
    for name, taken in times.times.items():
        low, high = taken.quartiles
        label = f"half of MiniLM, int8, batch 1, {LENGTH} tokens, {name}"
        yield Figure(label, round(taken.median, 3), "ms", round(low, 3), round(high, 3))
    for name in [other for other in models if other != "LiteRT"]:
        ratio = times.ratio(name, "LiteRT")
        label = f"half of MiniLM, int8, batch 1, {LENGTH} tokens, LiteRT over {name}, times faster"
        yield Figure(label, round(ratio.median, 3), "x", round(ratio.low, 3), round(ratio.high, 3))
