"""From a fine-tuned model to a file that is ten times faster: every promise of the pipeline.

    python -m benchmarks.pipeline --data FOLDER --json FILE

The model is MiniLM-L6 fine-tuned on SST-2 (recipes/minilm-sst2-teacher.yaml); accuracy is that of
the 872 dev sentences, where one standard error is 1.1 points; latency is taken in turns with torch
fp32 eager, round by round. Under 10 MB is recipes/compress-10mb.yaml; under 5 MB the same with
fewer tokens and tables of 4 bits; under 1 MB recipes/compress-1mb.yaml; int8
alone is the best backend of benchmarks/quantize_quality.py. The DistilBERT-shaped model has random
weights, which latency does not see. Trained models are kept by content hash and each part's
figures in --work, so that a run that was cut goes on; --only NAME makes one part and no table
(--only list names them); --only kept tables the parts that are there and makes none.
--teacher takes a folder in the fine-tuned model's place.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from benchmarks._figures import Figure, parse_arguments, report
from benchmarks._rows import kept_row
from benchmarks.oneshot_quality import Lines, recipe, teacher_folder
from benchmarks.quantize_quality import cost_of_making, quality, quantized_models
from hfcompress.measure.latency import measure_latency
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.onnx_export import example_inputs
from hfcompress.quantization.quantize import quantize
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.shrink import shrink
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import prepare
from hfcompress.sweep.run import run
from hfcompress.utils import Progress, quiet_libraries

# What is to be reached: megabytes, points, and times faster than torch fp32 by batch.
POINTS_10MB, FASTER_10MB = 1.0, {"32 x 32": 10, "1 x 32": 6}
POINTS_5MB, ACCURACY_1MB = 2.5, 78
SMALLER = ("vocabulary.min_count=2", "quantize.embedding_bits=4")
TIMES_TORCH, TIMES_ENGINE = 16, 7
POINTS_INT8, AGREEMENT_INT8, MEGABYTES_INT8 = 0.3, 98, 23


@dataclass(frozen=True)
class Setting:
    """Where the fine-tuned model, the data and the work are."""

    teacher: str
    overrides: list[str]
    work: Path


@dataclass(frozen=True)
class Part:
    """The figures of one part, as plain data."""

    figures: list[dict[str, Any]]


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__,
        data="folder with train.tsv and dev.tsv",
        work="folder of the runs and the rows",
        teacher="folder of the fine-tuned model; trained where it is not given",
        only="make one part only; list names them; kept: table what is there",
    )
    if arguments.only == "list":
        Console().print("\n".join(PARTS))
        return
    work = Path(arguments.work or "runs/pipeline")
    overrides = [f"data.path={arguments.data}"] if arguments.data else []
    setting = Setting(arguments.teacher or teacher_folder(work, overrides), overrides, work)
    figures: list[Figure] = []
    wanted = [arguments.only] if arguments.only and arguments.only != "kept" else list(PARTS)
    if arguments.only == "kept":
        wanted = [name for name in PARTS if (work / "rows" / f"{name}.json").is_file()]
    for name in wanted:
        part = kept_row(work / "rows" / f"{name}.json", Part, partial(_made, name, setting))
        figures += [Figure(**figure) for figure in part.figures]
    if arguments.only and arguments.only != "kept":
        for figure in figures:
            Console().print(f"{figure.name}: {figure.value:.4g} {figure.unit} {figure.note}")
        return
    report(figures, "pipeline", arguments.json)


def _made(name: str, setting: Setting) -> Part:
    return Part([asdict(figure) for figure in PARTS[name](setting)])


# --- the pipelines -----------------------------------------------------------------------------


def under_10mb(setting: Setting) -> list[Figure]:
    rows = rows_of(setting, "compress-10mb", "under-10mb")
    faster = {shape: f">= {times}" for shape, times in FASTER_10MB.items()}
    return [
        Figure("dense accuracy", 100 * rows[0]["value"], "%"),
        *by_step(rows),
        *ends(rows, "under 10 MB", 10, f">= {-POINTS_10MB}", faster),
    ]


def under_5mb(setting: Setting) -> list[Figure]:
    rows = rows_of(setting, "compress-10mb", "under-5mb", SMALLER)
    return ends(rows, "under 5 MB", 5, f">= {-POINTS_5MB}", {})


def under_1mb(setting: Setting) -> list[Figure]:
    rows = rows_of(setting, "compress-1mb", "under-1mb")
    value = Figure(
        "under 1 MB, accuracy", 100 * rows[-1]["value"], "%", target=f">= {ACCURACY_1MB}"
    )
    return [value, *ends(rows, "under 1 MB", 1, None, {})]


def rows_of(
    setting: Setting, name: str, folder: str, changes: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """The rows of a shipped recipe on the fine-tuned model."""
    plan = recipe(name, setting.teacher, [*setting.overrides, *changes])
    result = run(plan, setting.work / folder, Lines())
    if result.failures:
        raise SystemExit(f"{name}: {result.failures[0][1]}")
    return result.rows


def by_step(rows: list[dict[str, Any]]) -> list[Figure]:
    """Points after each step before the last."""
    return [
        Figure(f"after {row['method']}, points", -100 * row["drop"], "points") for row in rows[1:-1]
    ]


def ends(
    rows: list[dict[str, Any]],
    name: str,
    megabytes: int,
    points: str | None,
    faster: dict[str, str],
) -> list[Figure]:
    """What the last row has: points, agreement, megabytes, times smaller, times faster."""
    row = rows[-1]
    lost = round(-100 * row["drop"], 2)
    figures = [
        Figure(f"{name}, points", lost, "points", target=points),
        Figure(f"{name}, agreement with fp32", 100 * row["agreement"], "%"),
        Figure(f"{name}, size", row["bytes"] / 1e6, "MB", target=f"<= {megabytes}"),
        Figure(f"{name}, times smaller", row["compression_ratio"], "x"),
    ]
    for timing in row["timings"]:
        shape = f"{timing['batch_size']} x {timing['length']}"
        ratio, engine = timing["speedup"], timing["engine"]
        figures.append(
            Figure(
                f"{name}, against torch fp32, {shape}",
                ratio["median"],
                "x",
                ratio["low"],
                ratio["high"],
                faster.get(shape),
                f"{engine}, {timing['measured']['median']:.3g} ms",
            )
        )
    return figures


# --- int8 alone, and a DistilBERT-shaped model -------------------------------------------------


def int8_alone(setting: Setting) -> list[Figure]:
    plan = recipe("oneshot-methods", setting.teacher, setting.overrides)
    bench = prepare(plan, Progress(), StepCache())
    found = [one for one in quality(bench, quantized_models(bench)) if "best" in one.name]
    targets = [f">= {-POINTS_INT8}", f">= {AGREEMENT_INT8}", f"<= {MEGABYTES_INT8}"]
    return [
        replace(one, name=f"int8 alone, {one.name}", target=target)
        for one, target in zip(found, targets, strict=True)
    ]


def distilbert_half(setting: Setting) -> list[Figure]:
    """Half of the multiply-accumulates in int8, in turns with both kinds of fp32."""
    torch.manual_seed(0)
    dense = DistilBertForSequenceClassification(DistilBertConfig()).train(False)
    half = DistilBertForSequenceClassification(DistilBertConfig()).train(False)
    shrink(half, ShrinkConfig(macs=0.5, score="magnitude", multiple_of=16))
    batches = [example_inputs(half, 8, 32) for _ in range(4)]
    int8 = quantize(half, QuantizationConfig(backend="openvino", floats="auto"), batches)
    fp32 = quantize(dense, QuantizationConfig(backend="openvino", mode="none"))
    inputs = example_inputs(dense, 32, 32)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    calls: dict[str, Callable[[], object]] = {
        "torch fp32": lambda: dense(**inputs),
        "openvino fp32": lambda: fp32.logits(inputs),
        "openvino int8, half the MACs": lambda: int8.logits(inputs),
    }
    times = measure_latency(calls, warmup=3, repeats=20)
    fast = "openvino int8, half the MACs"
    figures = []
    for slow, target in (("torch fp32", TIMES_TORCH), ("openvino fp32", TIMES_ENGINE)):
        ratio = times.ratio(slow, fast)
        name = f"DistilBERT-shaped, half the MACs, int8, against {slow}, 32 x 32"
        note = f"{times.times[slow].median:.4g} ms to {times.times[fast].median:.4g} ms"
        figures.append(Figure(name, ratio.median, "x", ratio.low, ratio.high, f">= {target}", note))
    return figures


def making(setting: Setting) -> list[Figure]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(cost_of_making)


PARTS: dict[str, Callable[[Setting], list[Figure]]] = {
    "under-10mb": under_10mb,
    "under-5mb": under_5mb,
    "under-1mb": under_1mb,
    "int8-alone": int8_alone,
    "distilbert-half": distilbert_half,
    "making": making,
}


if __name__ == "__main__":
    main()
