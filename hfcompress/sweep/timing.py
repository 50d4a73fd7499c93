"""The latency of a row's model, in turns with the dense model in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from transformers import PreTrainedModel

from hfcompress.errors import ConfigError
from hfcompress.measure.latency import Latency, measure_latency
from hfcompress.quantization.engine import with_static_shape
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.onnx_export import example_inputs
from hfcompress.recipes.schema import LatencyConfig
from hfcompress.utils import Fields

# On a shared machine 20 rounds of a small model can all fall into a moment in which threads wake
# slowly and it seems three times slower than it is: such moments last a third of a second.
SECONDS = 2.0

Model = PreTrainedModel | QuantizedModel
Timing = Fields


def time_model(
    model: Model,
    dense: PreTrainedModel | None,
    batch: LatencyConfig,
    seconds: float | None = None,
) -> Timing:
    """Time a model and the dense one, round by round, on a batch without padding.

    Each is called twice in a row and the second call counts: see ``settle`` of `measure_latency`.

    The dense model runs as torch runs it: fp32, eager. A quantized one runs in its own engine.

    Args:
        model: what a step has made.
        dense: what it is compared with; None where ``model`` is that one.
        batch: its shape, and how many rounds at least.
        seconds: there are more rounds until they took this long; None: 2.

    Returns:
        ``batch_size``, ``length``, ``threads`` (of either), ``engine``, ``fixed``, ``repeats``;
        ``dense`` and ``measured``: milliseconds as ``median``, ``low`` and ``high`` (quartiles);
        ``speedup``: the same of the ratio within a round.
    """
    calls = {"measured": _call(model, batch)}
    if dense is not None:
        calls["dense"] = _call(dense, batch)
    seconds = SECONDS if seconds is None else seconds
    found = measure_latency(calls, batch.warmup, batch.repeats, seconds=seconds, settle=1)
    measured = _summary(found.times["measured"])
    ratio = None if dense is None else found.ratio("dense", "measured")
    return {
        "batch_size": batch.batch_size,
        "length": batch.length,
        "repeats": len(found.times["measured"].samples),
        "threads": torch.get_num_threads(),
        "engine": model.engine.name if isinstance(model, QuantizedModel) else "torch",
        "fixed": batch.fixed,
        "dense": measured if dense is None else _summary(found.times["dense"]),
        "measured": measured,
        "speedup": dict.fromkeys(("median", "low", "high"), 1.0)
        if ratio is None
        else {"median": ratio.median, "low": ratio.low, "high": ratio.high},
    }


def first_times(timings: Sequence[Timing]) -> dict[str, float] | None:
    """Milliseconds of the dense model and of the row's, of the first batch that was timed."""
    if not timings:
        return None
    return {name: timings[0][name]["median"] for name in ("dense", "measured")}


def check_length(model: PreTrainedModel, batches: Sequence[LatencyConfig]) -> None:
    """Refuse batches that the model cannot read.

    Raises:
        ConfigError: more tokens than it has positions.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    for batch in batches:
        if isinstance(limit, int) and 0 < limit < batch.length:
            raise ConfigError(
                f"measure.latency: {type(model).__name__} reads {limit} tokens at most, not "
                f"{batch.length}; lower length"
            )


def _call(model: Model, batch: LatencyConfig) -> Callable[[], object]:
    plain = cast(PreTrainedModel, model.source) if isinstance(model, QuantizedModel) else model
    inputs = example_inputs(plain, batch.batch_size, batch.length)
    if "attention_mask" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    if isinstance(model, QuantizedModel):
        engine = model.engine
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        if batch.fixed:
            engine = with_static_shape(engine, arrays)
        return lambda: engine.logits(arrays)
    return lambda: plain(**inputs)


def _summary(latency: Latency) -> dict[str, float]:
    low, high = latency.quartiles
    return {"median": latency.median, "low": low, "high": high}
