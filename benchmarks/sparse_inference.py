"""Sparse models on CPU at 90 % zeros: latency beside dense torch, torch CSR and int8, and bytes.

    python -m benchmarks.sparse_inference --json benchmarks/results/sparse_inference.json

DistilBERT- and MiniLM-shaped models with random weights, each Linear of the encoder pruned by
magnitude. Whole models, all contestants one after the other in every round; the speedup is taken
round by round. int8 is torch's dynamic quantization of the dense model.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

from benchmarks._figures import Figure, parse_arguments, report
from hfcompress import (
    PruningConfig,
    SparseLinear,
    measure_latency,
    prune,
    save_compressed,
    sparsify,
)
from hfcompress.models.architectures import select_modules

SPARSITY = 0.9
# Rows and length -> the speedup over dense torch to reach, and rounds.
WORKLOADS = {(1, 32): (">= 3", 30), (32, 32): (">= 2", 7)}
# The shape whose whole-model speedup has a target; the other's attention weighs more.
AIMED_AT = "DistilBERT"
SHAPES = ("DistilBERT", "MiniLM")


def main() -> None:
    arguments = parse_arguments(__doc__)
    figures = []
    for shape in SHAPES:
        model = pruned(shape, SPARSITY)
        figures.append(packed_bytes(shape, model))
        for (rows, length), (target, rounds) in WORKLOADS.items():
            aim = target if shape == AIMED_AT else None
            figures += latencies(shape, model, rows, length, aim, rounds)
        figures += one_thread(shape, model)
    figures.append(half_sparse())
    report(figures, "sparse_inference", arguments.json)


def pruned(shape: str, sparsity: float) -> PreTrainedModel:
    """A model in eval mode with random weights, pruned by magnitude."""
    torch.manual_seed(0)
    model: Any
    if shape == "DistilBERT":
        model = DistilBertForSequenceClassification(DistilBertConfig())
    else:
        config = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
        model = BertForSequenceClassification(config)
    prune(model, PruningConfig(sparsity=sparsity))
    made: PreTrainedModel = model.eval()
    return made


def packed_bytes(shape: str, model: PreTrainedModel) -> Figure:
    """Bytes of the pruned weights in the packed checkpoint over their dense bytes."""
    with tempfile.TemporaryDirectory() as folder:
        saved = save_compressed(model, folder, sparse=True)
    share = saved.bytes / saved.dense_bytes
    return Figure(f"{shape}: packed weights over dense", share, "share", target="<= 0.17")


def latencies(
    shape: str, model: PreTrainedModel, rows: int, length: int, target: str | None, rounds: int
) -> list[Figure]:
    """Speedups of the whole model over dense torch at one workload."""
    sparse, csr = copy.deepcopy(model), copy.deepcopy(model)
    chosen = sparsify(sparse, rows, length)
    for name in select_modules(csr):
        csr.set_submodule(name, SparseLinear(csr.get_submodule(name), "csr"))  # type: ignore[arg-type]
    ids = torch.randint(1000, 20_000, (rows, length), generator=torch.Generator().manual_seed(0))
    models: dict[str, Any] = {"dense": model, "sparse": sparse, "csr": csr, "int8": int8(model)}
    calls: dict[str, Callable[[], Tensor]] = {
        name: lambda net=net: net(input_ids=ids).logits  # type: ignore[misc]
        for name, net in models.items()
    }
    times = measure_latency(calls, warmup=2, repeats=rounds)
    taken = sum(choice.method is not None for choice in chosen.layers)
    place = f"{shape} {rows}x{length}"
    dense_ms = sum(choice.dense_ms for choice in chosen.layers)
    sparse_ms = sum(
        choice.sparse_ms if choice.method else choice.dense_ms for choice in chosen.layers
    )
    figures = [
        Figure(f"{place}: dense", times.times["dense"].median, "ms"),
        Figure(f"{place}: its Linears alone", dense_ms / sparse_ms, "x"),
    ]
    for name in ("sparse", "csr", "int8"):
        ratio = times.ratio("dense", name)
        figures.append(
            Figure(
                f"{place}: {name} over dense",
                ratio.median,
                "x",
                ratio.low,
                ratio.high,
                target if name == "sparse" else None,
                f"{taken} of {len(chosen.layers)} layers" if name == "sparse" else "",
            )
        )
    return figures


def one_thread(shape: str, model: PreTrainedModel) -> list[Figure]:
    """One short row again by one thread, without the cost of waking others."""
    threads = torch.get_num_threads()
    if threads == 1:
        return []
    torch.set_num_threads(1)
    try:
        figures = latencies(
            shape, model, 1, 32, WORKLOADS[1, 32][0] if shape == AIMED_AT else None, 30
        )
    finally:
        torch.set_num_threads(threads)
    return [replace(figure, name=f"{figure.name}, one thread") for figure in figures]


def int8(model: PreTrainedModel) -> nn.Module:
    """torch's dynamic quantization of every Linear."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize: Any = torch.ao.quantization.quantize_dynamic
        made: nn.Module = quantize(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    return made


def half_sparse() -> Figure:
    """At 50 % zeros hardly anything gains: how many layers are taken all the same."""
    chosen = sparsify(pruned("MiniLM", 0.5), 1, 32)
    share = sum(choice.method is not None for choice in chosen.layers) / len(chosen.layers)
    return Figure("MiniLM at 50 % zeros, 1x32: layers that gain", share, "share")


if __name__ == "__main__":
    main()
