"""How much faster smaller shapes are, in the same engine, interleaved.

    python -m benchmarks.latency --json FILE

Encoders of DistilBERT's and MiniLM's shape with random weights, cut to a share of the
multiply-accumulates of their layers; batches of rows x tokens, torch in fp32 and in bf16 (weights
and all). Two shapes of the same share stand beside each other: the fewest layers that hold it,
which is what to ask for where speed is the aim (`layers` beside `macs`) and what the targets are
for, and all layers with heads and neurons cut evenly, which keeps each layer's fixed cost: its
normalisations, and a call of each projection whatever its width. That cost is shown, too: the
time of a model without any head or neuron. Then the latency budget: `shrink` is asked for a
speedup by its table of measured costs, and what it reaches is timed. No data are needed; times
are medians.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
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
from hfcompress.measure.latency import LatencyReport, measure_latency
from hfcompress.pruning.calibration import Calibration
from hfcompress.pruning.structured.config import ShrinkConfig
from hfcompress.pruning.structured.costs import layer_macs
from hfcompress.pruning.structured.shrink import shrink
from hfcompress.pruning.structured.timing import with_widths
from hfcompress.quiet import quiet_libraries
from hfcompress.sublayers import sublayers

SHAPES = ((1, 32), (1, 128), (32, 32), (32, 128))
PRECISIONS = ("float32", "bfloat16")
# Share of the multiply-accumulates -> times faster that is to be reached.
SPEEDUPS = {0.5: 1.8, 0.33: 2.6, 0.25: 3.3}
# The budget: speedups asked for, and how far off they may be.
ASKED = (2.0, 3.0)
OFF = 0.1
SECONDS = 12.0


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(__doc__)
    figures: list[Figure] = []
    for name, model in models().items():
        figures += speedups(name, model)
        figures += budgets(name, model)
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


def shapes(dense: PreTrainedModel) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """Models by name, and the speedups that are to be reached by name."""
    parts = sublayers(dense)
    variants: dict[str, nn.Module] = {
        "dense": dense,
        "without heads and neurons": with_widths(dense, parts, {part.name: 0 for part in parts}),
    }
    goals: dict[str, float] = {}
    rows = Calibration([inputs(dense, 2, 32)])
    for share, goal in SPEEDUPS.items():
        few = math.ceil(share * dense.config.num_hidden_layers)
        goals[f"{share:.0%} of MACs in {few} layers"] = goal
        for name, layers in ((f"in {few} layers", few), ("evenly", None)):
            config = ShrinkConfig(
                macs=share, layers=layers, score="magnitude", multiple_of=16, length=128
            )
            variants[f"{share:.0%} of MACs {name}"] = small = copy.deepcopy(dense)
            shrink(small, config, rows)
    return variants, goals


def speedups(name: str, dense: PreTrainedModel) -> Iterator[Figure]:
    """Every shape at every batch, length and precision."""
    variants, goals = shapes(dense)
    for precision in PRECISIONS:
        dtype: torch.dtype = getattr(torch, precision)
        engine = {key: model.to(dtype) for key, model in copy.deepcopy(variants).items()}
        for rows, tokens in SHAPES:
            times = timed(engine, inputs(dense, rows, tokens))
            for key in [key for key in variants if key != "dense"]:
                ratio = times.ratio("dense", key)
                left = share_left(variants[key], dense)
                yield Figure(
                    f"{name}, {key}, {rows}x{tokens}, torch {precision}, speedup",
                    round(ratio.median, 2),
                    "x",
                    round(ratio.low, 2),
                    round(ratio.high, 2),
                    f">= {goals[key]:g}" if key in goals else None,
                    f"dense {times.times['dense'].median:.1f} ms; {left:.1%} of MACs left",
                )


def timed(engine: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> LatencyReport:
    calls = {name: _call(model, batch) for name, model in engine.items()}
    once = measure_latency(calls, warmup=1, repeats=1)
    whole = sum(time.median for time in once.times.values()) / 1000
    return measure_latency(calls, warmup=2, repeats=int(min(max(SECONDS / whole, 7), 100)))


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
            times = timed({"dense": dense, "shrunk": model}, inputs(dense, rows, tokens))
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
