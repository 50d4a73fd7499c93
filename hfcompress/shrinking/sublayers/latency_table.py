"""Latency of a model by the width of its sublayers: measured on this machine, kept in a file."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hfcompress.measure.environment import environment
from hfcompress.models.sublayers import Kind, Sublayer
from hfcompress.models.surgery import keep_units
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.latency import timed
from hfcompress.utils import atomic_write, cache_folder

_SHARES = {"heads": (0.0, 0.25, 0.5, 0.75, 1.0), "neurons": (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0)}
_SECONDS = 20.0
"""Seconds of timing for one table, about."""


@dataclass(frozen=True)
class TimeTable:
    """Milliseconds of a forward pass, taken apart.

    Attributes:
        dense: of the whole model.
        layers: how many layers it has.
        by_width: for heads and neurons, what the model loses when every layer has that width.
    """

    dense: float
    layers: int
    by_width: Mapping[str, Mapping[int, float]]

    @property
    def empty(self) -> float:
        """Milliseconds of the model without any unit."""
        units = (self.cost("heads", 10**9) + self.cost("neurons", 10**9)) * self.layers
        return max(self.dense - units, 0.0)

    def cost(self, kind: Kind, width: int) -> float:
        """Milliseconds of one sublayer above those of an empty one."""
        known = self.by_width[kind]
        widths = sorted(known)
        times = np.maximum.accumulate([known[w] - known[widths[0]] for w in widths])
        return float(np.interp(width, widths, times)) / self.layers


def time_table(
    model: nn.Module, parts: Sequence[Sublayer], inputs: Mapping[str, Tensor], config: ShrinkConfig
) -> TimeTable:
    """The table of a dense model on this machine: read from the cache, or timed once.

    Args:
        model: not changed.
        parts: its sublayers.
        inputs: what is timed.
        config: its precision.

    Returns:
        the table; the times of the parts are assumed to add up.
    """
    place = cache_folder() / "latency" / f"{_key(model, parts, inputs, config)}.json"
    if place.is_file():
        return _read(place)
    variants = {"dense": model}
    for kind, shares in _SHARES.items():
        mine = [part for part in parts if part.kind == kind]
        most = max(part.units(model) for part in mine)
        for width in {round(share * most) for share in shares if share < 1}:
            widths = {part.name: width for part in mine}
            variants[f"{kind} {width}"] = with_widths(model, parts, widths)
    times = timed(variants, inputs, config.precision, _SECONDS)
    found = {name: times.times[name].median for name in variants}
    data = {
        "dense": found["dense"],
        "layers": len(parts) // 2,
        "by_width": {
            kind: {
                str(max(part.units(model) for part in parts if part.kind == kind)): found["dense"],
                **{n.split()[1]: t for n, t in found.items() if n.startswith(f"{kind} ")},
            }
            for kind in _SHARES
        },
        "environment": environment(),
    }
    atomic_write(place, json.dumps(data, indent=1))
    return _read(place)


def _read(place: Path) -> TimeTable:
    data = json.loads(place.read_text(encoding="utf-8"))
    by_width = {
        kind: {int(width): ms for width, ms in times.items()}
        for kind, times in data["by_width"].items()
    }
    return TimeTable(data["dense"], data["layers"], by_width)


def with_widths(
    model: nn.Module, parts: Sequence[Sublayer], widths: Mapping[str, int]
) -> nn.Module:
    """A copy whose sublayers have some widths (their first units); for timing alone.

    What lies outside of the narrowed projections is shared with the model.
    """
    touched: set[int] = set()
    for part in parts:
        if part.name in widths:
            for name in (*part.producers, part.name):
                touched.update(id(p) for p in model.get_submodule(name).parameters())
            touched.update(id(model.get_parameter(name)) for name in part.tables)
    shared = {id(p): p for p in model.parameters() if id(p) not in touched}
    narrow = copy.deepcopy(model, shared).eval()
    for part in parts:
        if part.name in widths:
            keep_units(narrow, part, range(min(widths[part.name], part.units(narrow))))
    return narrow


def _key(
    model: nn.Module, parts: Sequence[Sublayer], inputs: Mapping[str, Tensor], config: ShrinkConfig
) -> str:
    machine = environment()
    described = {
        "machine": [machine[k] for k in ("cpu", "cpu_capability", "cores", "threads", "gpu")],
        "torch": torch.__version__,
        "model": type(model).__name__,
        "shapes": [(name, list(tensor.shape)) for name, tensor in model.named_parameters()],
        "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
        "parts": [(part.name, part.units(model)) for part in parts],
        "inputs": sorted((name, list(tensor.shape)) for name, tensor in inputs.items()),
        "precision": config.precision,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
