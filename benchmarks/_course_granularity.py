"""The study of granularity: weights, N of M weights, neurons or whole layers are removed."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from benchmarks._course import Right, accuracy, fit, loader, right
from benchmarks._figures import Figure
from hfcompress import (
    PruningConfig,
    ShrinkConfig,
    measure_latency,
    prune,
    save_module,
    shrink,
    sparsify,
)
from hfcompress.measure.latency import LatencyReport

BLOCKS, WIDTH, HIDDEN = 6, 128, 256
EPOCHS, RECOVERY, BATCH, ROUNDS = 8, 4, 32, 200
AMOUNTS: dict[str, tuple[Any, ...]] = {
    "unstructured": (0.8, 0.9, 0.95, 0.98, 0.99),
    "N:M": ("2:4", "1:4", "1:8", "1:16"),
    "neurons": (0.5, 0.3, 0.15, 0.05),
    "layers": (4, 2, 0),
}
"""What is removed -> shares of zeros, patterns, shares of the products left, blocks left."""


class Block(nn.Module):
    """Two Linears beside an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, WIDTH] -> the same shape."""
        found: Tensor = x + self.down(F.relu(self.up(self.norm(x))))
        return found


class Residual(nn.Module):
    """A residual perceptron over the pixels, whose blocks can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(784, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, 784] -> [rows, 10]."""
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.head(F.relu(x))
        return found


@dataclass(frozen=True)
class Variant:
    """One compressed network.

    Attributes:
        method: what was removed.
        amount: how much, in words.
        model: as it is run: `sparsify` has looked at its zeros.
        hits: which of the test images it knows.
        bytes: of its weights' file, zeros packed.
    """

    method: str
    amount: str
    model: nn.Module
    hits: Right
    bytes: int


def variants(data: TensorDataset, test: TensorDataset) -> Iterator[Variant]:
    """The dense network, and each of `AMOUNTS` after the same further training.

    Args:
        data: trained on.
        test: measured on.
    """
    torch.manual_seed(0)
    dense = fit(Residual(), loader(data), EPOCHS)
    longer = fit(copy.deepcopy(dense), loader(data, 1), RECOVERY, 1e-3)
    yield _variant("dense", "", longer, test)
    for method, amounts in AMOUNTS.items():
        for amount in amounts:
            model = copy.deepcopy(dense)
            name = _remove(model, method, amount, data)
            has_zeros = method in ("unstructured", "N:M")
            fit(model, loader(data, 1), RECOVERY, 1e-3, holds_zeros=has_zeros)
            yield _variant(method, name, model, test)


def _remove(model: nn.Module, method: str, amount: Any, data: TensorDataset) -> str:
    """Remove in place; return how much in words."""
    rows = TensorDataset(*(tensor[:512] for tensor in data.tensors))
    if method == "unstructured":
        prune(model, PruningConfig(method="alps", sparsity=amount), rows)
        return f"{100 * amount:g} % zeros"
    if method == "N:M":
        prune(model, PruningConfig(method="alps", pattern=amount), rows)
        return str(amount)
    if method == "neurons":
        shrink(model, ShrinkConfig(macs=amount, multiple_of=8), rows)
        return f"{100 * amount:g} % of the products"
    drop_blocks(model, amount, rows)
    return f"{amount} of {BLOCKS} blocks"


@torch.inference_mode()
def drop_blocks(model: nn.Module, count: int, rows: TensorDataset) -> None:
    """Leave out blocks, one at a time: the one without which the loss is least.

    Args:
        model: a `Residual`.
        count: blocks that stay.
        rows: the loss is measured on.
    """
    images, labels = rows.tensors
    while len(blocks := list(model.get_submodule("blocks").children())) > count:
        losses = []
        for place in range(len(blocks)):
            model.set_submodule("blocks", nn.ModuleList(blocks[:place] + blocks[place + 1 :]))
            losses.append(float(F.cross_entropy(model(images), labels)))
        place = int(np.argmin(losses))
        model.set_submodule("blocks", nn.ModuleList(blocks[:place] + blocks[place + 1 :]))


def _variant(method: str, amount: str, model: nn.Module, test: TensorDataset) -> Variant:
    with tempfile.TemporaryDirectory() as folder:
        save_module(model, folder, sparse=True)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    hits = right(model, test)
    if method in ("unstructured", "N:M"):
        sparsify(model, BATCH, 1)
    return Variant(method, amount, model.eval(), hits, size)


def timed(found: Sequence[Variant]) -> LatencyReport:
    """Times of all, in turns on one batch; their names are their places."""
    rows = torch.randn(BATCH, 784, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], object]] = {
        str(place): partial(one.model, rows) for place, one in enumerate(found)
    }
    return measure_latency(calls, repeats=ROUNDS, seconds=15, settle=2)


def figures(found: Sequence[Variant], times: LatencyReport) -> Iterator[Figure]:
    """Accuracy, kilobytes and milliseconds of each."""
    for place, one in enumerate(found):
        name = f"granularity: {one.method}" + f" {one.amount}".rstrip()
        taken = times.times[str(place)]
        low, high = taken.quartiles
        yield accuracy(f"{name}, accuracy", one.hits)
        yield Figure(f"{name}, size", round(one.bytes / 1000, 1), "KB")
        yield Figure(f"{name}, time", round(taken.median, 3), "ms", round(low, 3), round(high, 3))


def rows_of(found: Sequence[Variant], times: LatencyReport) -> list[dict[str, Any]]:
    """Rows as a run's folder has them, for the pictures."""
    rows = []
    for place, one in enumerate(found):
        seen = accuracy("", one.hits)
        rows.append({
            "method": one.method, "value": float(one.hits.mean()), "low": (seen.low or 0) / 100,
            "high": (seen.high or 0) / 100, "n": len(one.hits), "metric": "accuracy",
            "settings": {}, "steps": [], "bytes": one.bytes, "requested_sparsity": None,
            "latency": {"measured": times.times[str(place)].median},
        })  # fmt: skip
    return rows
