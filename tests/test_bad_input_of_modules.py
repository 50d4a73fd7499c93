"""Bad input to the verbs that take modules: a sentence each, and the module is as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hfcompress import (
    CompressionPipeline,
    CompressTarget,
    ProgressiveConfig,
    PruningConfig,
    QuantizationConfig,
    ShrinkConfig,
    compress_module,
    distill,
    evaluate,
    load_module,
    progressive,
    prune,
    quantize,
    save_module,
    sensitivity,
    shrink,
    sweep_module,
    train_one_epoch,
)
from hfcompress.errors import BadInputError
from tests.plain_networks import NETWORKS

HALF = PruningConfig(sparsity=0.5)
Verb = Callable[[nn.Module, Any], object]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def is_refused(model: nn.Module, call: Callable[[], object], words: str) -> None:
    """A call fails in one sentence that has some words, and changes no weight."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BadInputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


READERS: dict[str, Verb] = {
    "wanda": lambda net, data: prune(net, PruningConfig(method="wanda", sparsity=0.5), data),
    "alps": lambda net, data: prune(net, PruningConfig(method="alps", sparsity=0.5), data),
    "taylor": lambda net, data: prune(net, PruningConfig(method="taylor", sparsity=0.5), data),
    "shrink": lambda net, data: shrink(net, ShrinkConfig(macs=0.5), data),
    "distill": lambda net, data: distill(copy.deepcopy(net), net, data, epochs=1),
    "train": lambda net, data: train_one_epoch(net, data, sgd(net)),
    "evaluate": evaluate,
    "quantize": lambda net, data: quantize(net, QuantizationConfig(backend="torch"), data),
    "sweep": lambda net, data: sweep_module(net, data, [HALF], loader=data),
    "pipeline": lambda net, data: CompressionPipeline([HALF]).run_module(net, data, data),
    "compress": lambda net, data: compress_module(net, data, CompressTarget(max_size=9000), data),
}
LEARNERS = ("taylor", "distill", "train", "evaluate", "sweep", "pipeline", "compress")


def used_up(rows: tuple[Tensor, ...]) -> Any:
    found = (rows for _ in range(1))
    next(found)
    return found


@pytest.mark.parametrize("given", ["empty", "used up"])
@pytest.mark.parametrize("verb", READERS)
def test_a_loader_without_batches_is_refused(verb: str, given: str) -> None:
    network = NETWORKS["mlp"]
    model, rows = network.model(), network.rows(8)
    data: Any = [] if given == "empty" else used_up(rows)
    says = "no batches|give an example batch"
    is_refused(model, lambda: READERS[verb](model, data), says)


@pytest.mark.parametrize("verb", LEARNERS)
def test_labels_that_are_no_integers_are_refused(verb: str) -> None:
    network = NETWORKS["mlp"]
    model, (x, y) = network.model(), network.rows(8)
    data = [(x, y.float() + 0.5)]
    is_refused(model, lambda: READERS[verb](model, data), "integers|class numbers")


MEASURERS: dict[str, Verb] = {
    "sweep": lambda net, score: sweep_module(net, score, [HALF]),
    "pipeline": lambda net, score: CompressionPipeline([HALF]).run_module(net, None, score),
    "compress": lambda net, score: compress_module(
        net, score, CompressTarget(max_size=9000), NETWORKS["mlp"].loader(16, 8)
    ),
    "sensitivity": lambda net, score: sensitivity(net, HALF, score, (0.5,)),
    "progressive": lambda net, score: progressive(
        net, ProgressiveConfig(sparsity=0.5, rounds=1), lambda *_: None, lambda _: None, score
    ),
}


@pytest.mark.parametrize("value", [None, "0.9", float("nan")])
@pytest.mark.parametrize("verb", MEASURERS)
def test_an_evaluation_that_gives_no_number_is_refused(verb: str, value: Any) -> None:
    model = NETWORKS["mlp"].model()
    says = r"evaluate returned .*not a"
    is_refused(model, lambda: MEASURERS[verb](model, lambda net: value), says)


class Branching(nn.Module):
    """Python decides by values of the input, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        while hidden.sum().item() > 100:
            hidden = hidden / 2
        found: Tensor = self.last(hidden)
        return found


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "executorch", "litert"])
def test_a_module_that_cannot_be_exported_is_refused(backend: Any) -> None:
    pytest.importorskip({"litert": "litert_torch"}.get(backend, backend))
    model = Branching().eval()
    config = QuantizationConfig(backend=backend, mode="static")
    is_refused(
        model, lambda: quantize(model, config, torch.randn(8, 12)), "Branching.*backend: |export"
    )


def test_a_factory_with_other_shapes_is_refused(tmp_path: Path) -> None:
    model = NETWORKS["mlp"].model()
    save_module(model, tmp_path / "saved")

    def other() -> nn.Module:
        found = NETWORKS["mlp"].make()
        found.set_submodule("second", nn.Linear(32, 25))
        return found

    is_refused(model, lambda: load_module(tmp_path / "saved", other), r"second.weight|shape")
