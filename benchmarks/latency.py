"""How much faster smaller shapes are, in the same engine, interleaved.

    python -m benchmarks.latency --json FILE

Encoders of DistilBERT's and MiniLM's shape with random weights, cut to a share of the
multiply-accumulates of their layers; batches of rows x tokens, torch in fp32 and in bf16 (weights
and all), and ONNX Runtime and OpenVINO where they are installed. Two shapes of the same share stand
beside each other: the fewest layers that hold it, which is what to ask for where speed is the aim
(`layers` beside `macs`) and what the targets are for, and, in torch, all layers with heads and
neurons cut evenly, which keeps each layer's fixed cost: its normalisations, and a call of each
projection whatever its width. That cost is shown, too: the time of a model without any head or
neuron, and of one without layers, whose share f of the dense model's time bounds what a share s of
the layers can give: 1 / (f + s (1 - f)) times. Then the latency budget: `shrink` is asked for a
speedup by its table of measured costs, and what it reaches is timed. No data are needed; times are
medians. Each part's figures are kept in --work, so that a run that was cut goes on.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
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

from benchmarks._figures import Figure, kept_figures, parse_arguments, report
from benchmarks._latency_engines import OTHERS, SHAPES, engine_times, timed
from hfcompress.calibration.batches import Calibration
from hfcompress.measure.latency import LatencyReport
from hfcompress.models.architectures import blocks
from hfcompress.models.sublayers import sublayers
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.shrink import shrink
from hfcompress.shrinking.sublayers.costs import layer_macs
from hfcompress.shrinking.sublayers.latency_table import with_widths
from hfcompress.utils import quiet_libraries

PRECISIONS = ("float32", "bfloat16")
# Share of the multiply-accumulates -> times faster that is to be reached.
SPEEDUPS = {0.5: 1.8, 0.33: 2.6, 0.25: 3.3}
# The budget: speedups asked for, and how far off they may be.
ASKED = (2.0, 3.0)
OFF = 0.1
EMPTY, BARE = "without heads and neurons", "without layers"


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(__doc__, work="folder of the parts' figures, kept as they come")
    work = Path(arguments.work or "runs/latency")
    figures: list[Figure] = []
    for name, dense in models().items():
        few, even = shapes(dense)
        parts = {"torch": partial(in_torch, name, dense, few, even)}
        parts |= {engine: partial(in_engine, engine, name, dense, few) for engine in OTHERS}
        parts["budgets"] = partial(budgets, name, dense)
        for part, make in parts.items():
            figures += kept_figures(work / f"{name}, {part}.json", make)
    report(figures, "latency", arguments.json)


def models() -> dict[str, PreTrainedModel]:
    """The dense models, with random weights."""
    torch.manual_seed(0)
    distilbert = DistilBertForSequenceClassification(DistilBertConfig())
    minilm = BertForSequenceClassification(
        BertConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
        )
    )
    shaped: dict[str, PreTrainedModel] = {"DistilBERT": distilbert, "MiniLM-L6": minilm}
    return {name: model.train(False) for name, model in shaped.items()}


def shapes(dense: PreTrainedModel) -> tuple[dict[float, Any], dict[float, Any]]:
    """By the share of multiply-accumulates that is left: in the fewest layers, and cut evenly."""
    few: dict[float, Any] = {}
    even: dict[float, Any] = {}
    rows = Calibration([inputs(dense, 2, 32)])
    for share in SPEEDUPS:
        for made, layers in (
            (few, math.ceil(share * dense.config.num_hidden_layers)),
            (even, None),
        ):
            config = ShrinkConfig(
                macs=share, layers=layers, score="magnitude", multiple_of=16, length=128
            )
            made[share] = small = copy.deepcopy(dense)
            shrink(small, config, rows)
    return few, even


def in_torch(
    name: str, dense: PreTrainedModel, few: Mapping[float, Any], even: Mapping[float, Any]
) -> Iterator[Figure]:
    """Every shape at every batch, length and precision."""
    parts = sublayers(dense)
    variants: dict[Any, nn.Module] = {
        "dense": dense,
        EMPTY: with_widths(dense, parts, {part.name: 0 for part in parts}),
        BARE: without_layers(dense),
    }
    variants |= {(share, "fewest layers"): model for share, model in few.items()}
    variants |= {(share, "evenly"): model for share, model in even.items()}
    for precision in PRECISIONS:
        dtype: torch.dtype = getattr(torch, precision)
        engine = {key: model.to(dtype) for key, model in copy.deepcopy(variants).items()}
        for rows, tokens in SHAPES:
            batch = inputs(dense, rows, tokens)
            times = timed({key: _call(model, batch) for key, model in engine.items()})
            where = f"{rows}x{tokens}, torch {precision}"
            for kind in (EMPTY, BARE):
                yield _figure(f"{name}, {kind}, {where}, speedup", times, kind)
            for share, kind in [key for key in variants if isinstance(key, tuple)]:
                title = f"{name}, {kind}, {where}, {share:.0%}, speedup"
                goal = SPEEDUPS[share] if kind == "fewest layers" else None
                yield _figure(title, times, (share, kind), goal, variants[share, kind], dense)


def without_layers(dense: PreTrainedModel) -> nn.Module:
    """Embeddings, and what is behind the layers."""
    model = copy.deepcopy(dense)
    layers = next(iter(blocks(model))).rpartition(".")[0]
    model.set_submodule(layers, nn.ModuleList())
    return model


def in_engine(
    engine: str, name: str, dense: PreTrainedModel, few: Mapping[float, Any]
) -> Iterator[Figure]:
    """The fewest layers in another engine, over the dense model there."""
    for (rows, tokens), times in engine_times(engine, {"dense": dense, **few}).items():
        for share, model in few.items():
            title = f"{name}, fewest layers, {rows}x{tokens}, {engine}, {share:.0%}, speedup"
            yield _figure(title, times, share, SPEEDUPS[share], model, dense)


def _figure(
    title: str,
    times: LatencyReport,
    key: Any,
    goal: float | None = None,
    model: nn.Module | None = None,
    dense: nn.Module | None = None,
) -> Figure:
    ratio = times.ratio("dense", key)
    note = f"dense {times.times['dense'].median:.1f} ms"
    if model is not None and dense is not None:
        note += f"; {share_left(model, dense):.1%} of MACs left"
    low, high = round(ratio.low, 2), round(ratio.high, 2)
    target = None if goal is None else f">= {goal:g}"
    return Figure(title, round(ratio.median, 2), "x", low, high, target, note)


def _call(model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    return lambda: model(**batch)


def inputs(model: PreTrainedModel, rows: int, tokens: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (rows, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def share_left(model: nn.Module, dense: nn.Module) -> float:
    return layer_macs(model, sublayers(model), 128) / layer_macs(dense, sublayers(dense), 128)


def budgets(name: str, dense: PreTrainedModel) -> Iterator[Figure]:
    """A speedup asked for, and the one that is reached."""
    for rows, tokens in ((1, 32), (32, 32)):
        calibration = Calibration([inputs(dense, rows, tokens)])
        for asked in ASKED:
            model = copy.deepcopy(dense)
            config = ShrinkConfig(
                speedup=asked,
                score="magnitude",
                multiple_of=16,
                batch_size=rows,
                length=tokens,
            )
            shrink(model, config, calibration)
            batch = inputs(dense, rows, tokens)
            times = timed({"dense": _call(dense, batch), "shrunk": _call(model, batch)})
            ratio = times.ratio("dense", "shrunk")
            off = abs(ratio.median / asked - 1)
            yield Figure(
                f"{name}, {asked:g} times faster asked for, {rows}x{tokens}, off by",
                round(100 * off, 1),
                "%",
                target=f"<= {100 * OFF:g}",
                note=f"{ratio.median:.2f} x reached, {ratio.low:.2f} to {ratio.high:.2f}",
            )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HFCOMPRESS_CACHE"] = cache  # the table is timed anew
        main()
