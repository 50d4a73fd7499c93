"""Shapes of one model in the engines beside torch, timed in turns within each engine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from hfcompress import BenchConfig, save_compressed
from hfcompress.benchmarking.config import ENGINES
from hfcompress.benchmarking.inputs import make_inputs
from hfcompress.benchmarking.subjects import Subject, find_subjects
from hfcompress.errors import MissingExtraError
from hfcompress.measure.latency import LatencyReport, measure_latency

SHAPES = ((1, 32), (1, 128), (32, 32), (32, 128))
OTHERS = tuple(name for name in ENGINES if name.split("-")[0] in ("onnxruntime", "openvino"))
SECONDS = 6.0


def timed(calls: Mapping[Any, Callable[[], Any]]) -> LatencyReport:
    """As many rounds as fit into `SECONDS`, seven at least and a hundred at most."""
    once = measure_latency(calls, warmup=1, repeats=1)
    whole = sum(time.median for time in once.times.values()) / 1000
    return measure_latency(calls, warmup=2, repeats=int(min(max(SECONDS / whole, 7), 100)))


def engine_times(
    engine: str, models: Mapping[Any, PreTrainedModel]
) -> dict[tuple[int, int], LatencyReport]:
    """The times of all models in one engine at each of `SHAPES`; none where it is not installed.

    Args:
        engine: of `OTHERS`.
        models: by name; each is saved and converted.
    """
    say = partial(Console(stderr=True).print, markup=False)
    config = BenchConfig(length=tuple({tokens for _, tokens in SHAPES}), engine=(engine,))
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{number}") for number in range(len(models))]
        for path, model in zip(paths, models.values(), strict=True):
            save_compressed(model, path)
        try:
            found = find_subjects(paths, config, say, lambda stage: None)
        except MissingExtraError:
            return {}  # it has been said
        return _at_every_shape(dict(zip(models, found, strict=True)))


def _at_every_shape(subjects: Mapping[Any, Subject]) -> dict[tuple[int, int], LatencyReport]:
    opened = {name: subject.open(torch.get_num_threads()) for name, subject in subjects.items()}
    return {
        (rows, tokens): timed(
            {
                name: partial(engine.logits, make_inputs(subjects[name].spec, rows, tokens))
                for name, engine in opened.items()
            }
        )
        for rows, tokens in SHAPES
    }
