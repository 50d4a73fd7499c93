"""What int8 alone costs and gives, for every backend that is installed, and what making it takes.

    python -m benchmarks.quantize_quality --data FOLDER --json FILE

The model is MiniLM-L6 fine-tuned on SST-2 (recipes/minilm-sst2-teacher.yaml); accuracy is that of
the 872 dev sentences, where one standard error is 1.1 points. Latency is taken in turns, round by
round, for one sentence and for 32 of 32 tokens: torch fp32 eager, each engine in fp32, each in
int8. Making it is measured on a model of DistilBERT's shape with random weights, in a process of
its own: seconds, and the memory it adds at its peak, model included. --teacher takes a folder in
the fine-tuned model's place.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from benchmarks._figures import Figure, parse_arguments, report
from benchmarks.oneshot_quality import recipe, teacher_folder
from hfcompress.errors import MissingExtraError
from hfcompress.inference import predict
from hfcompress.measure.latency import LatencyReport, measure_latency
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.onnx_export import example_inputs
from hfcompress.quantization.quantize import quantize
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import Experiment, prepare
from hfcompress.utils import Progress, quiet_libraries

# fmt: off
CONFIGS: dict[str, dict[str, Any]] = {
    "torch dynamic int8": {"backend": "torch"},
    "torchao dynamic int8": {"backend": "torchao"},
    "torchao int8 weights": {"backend": "torchao", "mode": "weight-only"},
    "onnxruntime fp32": {"backend": "onnxruntime", "mode": "none"},
    "onnxruntime dynamic int8": {"backend": "onnxruntime"},
    "onnxruntime dynamic int8, per token": {"backend": "onnxruntime", "per_token": True},
    "onnxruntime dynamic int8, per token, 4-bit tables": {
        "backend": "onnxruntime", "per_token": True, "embedding_bits": 4,
    },
    "onnxruntime static int8": {"backend": "onnxruntime", "mode": "static"},
    "openvino fp32": {"backend": "openvino", "mode": "none"},
    "openvino int8": {"backend": "openvino"},
    "openvino int8, 4-bit tables": {"backend": "openvino", "embedding_bits": 4},
    "openvino int8, bf16 between": {"backend": "openvino", "floats": "auto"},
}
# fmt: on
CALIBRATION_ROWS = 256
SHAPES = ((1, 32), (32, 32))
# Of the best backend, by accuracy and then agreement.
POINTS, AGREEMENT, MEGABYTES = 0.3, 98, 23
SECONDS, TIMES_THE_MODEL = 60, 3


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__,
        data="folder with train.tsv and dev.tsv",
        work="folder of the runs' rows",
        teacher="folder of the fine-tuned model; trained where it is not given",
    )
    work = Path(arguments.work or "runs/oneshot_quality")
    overrides = [f"data.path={arguments.data}"] if arguments.data else []
    teacher = arguments.teacher or teacher_folder(work, overrides)
    bench = prepare(recipe("oneshot-methods", teacher, overrides), Progress(), StepCache())
    made = quantized_models(bench)
    figures = [*quality(bench, made), *latency(bench, made)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures += pool.apply(cost_of_making)
    report(figures, "quantize_quality", arguments.json)


def quantized_models(bench: Experiment) -> dict[str, QuantizedModel]:
    """The model in every engine that is installed."""
    assert bench.train is not None
    chosen = np.random.default_rng(0).choice(len(bench.train), CALIBRATION_ROWS, replace=False)
    batches = [batch for _, batch in bench.train.batches(32, np.sort(chosen))]
    made = {}
    for name, options in CONFIGS.items():
        try:
            config = QuantizationConfig.from_dict(options)
            made[name] = quantize(bench.loaded.model, config, batches)
        except MissingExtraError as error:
            Console(stderr=True).print(f"{name} is left out: {error}")
    return made


def quality(bench: Experiment, made: dict[str, QuantizedModel]) -> Iterator[Figure]:
    """Points against fp32, agreement with it, and megabytes; then the best of them."""
    expected = predict(bench.loaded.model, bench.eval, 32).argmax(1)
    labels = bench.eval.labels
    dense = float(np.mean(expected == labels))
    yield Figure("fp32 accuracy", 100 * dense, "%")
    found: dict[str, tuple[float, float, float]] = {}
    for name, model in made.items():
        classes = model.predict(bench.eval, 32).argmax(1)
        points = round(100 * (float(np.mean(classes == labels)) - dense), 2)
        agreement = 100 * float(np.mean(classes == expected))
        megabytes = model.bytes / 1e6
        yield Figure(f"{name}, points", points, "points")
        yield Figure(f"{name}, agreement with fp32", agreement, "%")
        yield Figure(f"{name}, size", megabytes, "MB")
        if model.config.resolved_mode != "none" and model.config.embedding_bits == 8:
            found[name] = (points, agreement, megabytes)
    small = {name: row for name, row in found.items() if row[2] <= MEGABYTES} or found
    best = max(small, key=lambda name: small[name][:2])
    points, agreement, megabytes = small[best]
    yield Figure("best backend, points", points, "points", target=f">= {-POINTS}", note=best)
    yield Figure("best backend, agreement", agreement, "%", target=f">= {AGREEMENT}", note=best)
    yield Figure("best backend, size", megabytes, "MB", target=f"<= {MEGABYTES}", note=best)


def latency(bench: Experiment, made: dict[str, QuantizedModel]) -> Iterator[Figure]:
    """Times of everything in turns, and the ratios to torch fp32 and to the same engine's fp32."""
    dense = bench.loaded.model
    for rows, tokens in SHAPES:
        inputs = example_inputs(dense, rows, tokens)
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        calls: dict[str, Callable[[], object]] = {"torch fp32": lambda x=inputs: dense(**x)}  # type: ignore[misc]
        for name, model in made.items():
            calls[name] = lambda m=model, x=inputs: m.logits(x)  # type: ignore[misc]
        times = measure_latency(calls, warmup=3, repeats=20)
        where = f"{rows} x {tokens}"
        for name, taken in times.times.items():
            low, high = taken.quartiles
            yield Figure(f"{name}, {where}", taken.median, "ms", low, high)
            yield from _ratios(times, name, where)


def _ratios(times: LatencyReport, name: str, where: str) -> Iterator[Figure]:
    engine = name.split()[0]
    slow = [key for key in ("torch fp32", f"{engine} fp32") if key in times.times]
    for other in dict.fromkeys(slow):
        if other != name:
            ratio = times.ratio(other, name)
            yield Figure(
                f"{name} against {other}, {where}", ratio.median, "x", ratio.low, ratio.high
            )


def cost_of_making() -> list[Figure]:
    """Export and quantize a model of DistilBERT's shape, in this process."""
    quiet_libraries()
    tiny = DistilBertConfig(vocab_size=50, dim=32, n_layers=1, n_heads=2, hidden_dim=32)
    quantize(DistilBertForSequenceClassification(tiny))  # everything is imported now
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    model = DistilBertForSequenceClassification(DistilBertConfig()).train(False)
    size = sum(parameter.nbytes for parameter in model.parameters())
    started = time.perf_counter()
    quantize(model)
    took = time.perf_counter() - started
    times = (_memory("VmHWM") - before) / size
    return [
        Figure("DistilBERT-shaped, export and quantize", took, "s", target=f"<= {SECONDS}"),
        Figure("... peak memory by the model's", times, "x", target=f"<= {TIMES_THE_MODEL}"),
    ]


def _memory(field: str) -> int:
    """Bytes of this process's memory: ``VmRSS`` now, ``VmHWM`` at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
