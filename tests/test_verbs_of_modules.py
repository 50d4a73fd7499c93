"""Verbs x kinds of module: each works, or is refused in one sentence with the module untouched.

What is refused is listed here; a verb that begins to work, or begins to fail, fails the test.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hfcompress import (
    CompressionPipeline,
    CompressTarget,
    LotteryConfig,
    ProgressiveConfig,
    PruningConfig,
    QuantizationConfig,
    ShrinkConfig,
    bench,
    check,
    compress,
    count_parameters,
    distill,
    evaluate,
    find_ticket,
    load_module,
    progressive,
    prune,
    quantize,
    save_compressed,
    save_module,
    sensitivity,
    shrink,
    shrink_vocabulary,
    sweep_module,
    train_one_epoch,
)
from hfcompress.calibration.moments import weight_of
from hfcompress.errors import BadInputError
from hfcompress.pruning.targets import weight_matrices
from tests.plain_networks import NETWORKS, Network

pytestmark = pytest.mark.usefixtures("shared_exports")

HALF = PruningConfig(sparsity=0.5)
TAGGED = r"must return \[rows, outputs\]|one row of logits for each example"
TRANSFORMERS = "takes transformers models, not a .*; "


class Case:
    """A module, and what verbs need besides it."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder, self.model = network, folder, network.model()
        self.loader = network.loader(16, 8)

    def train(self, model: nn.Module) -> None:
        train_one_epoch(model, self.loader, torch.optim.SGD(model.parameters(), lr=0.01))

    def score(self, model: Any) -> float:
        return evaluate(model, self.loader)

    def is_half_zero(self) -> None:
        zeros = [(weight_of(m) == 0).float().mean() for m in weight_matrices(self.model).values()]
        assert max(zeros) == pytest.approx(0.5, abs=0.13)

    def answers(self) -> torch.Tensor:
        with torch.no_grad():
            found = self.model.eval()(self.network.rows(4)[0])
        found = found[0] if isinstance(found, tuple) else found
        logits = found["logits"] if isinstance(found, dict) else getattr(found, "logits", found)
        assert isinstance(logits, torch.Tensor)
        return logits


def by_method(method: Any) -> Callable[[Case], None]:
    def run(case: Case) -> None:
        prune(case.model, PruningConfig(method=method, sparsity=0.5), case.loader)
        case.is_half_zero()

    return run


def rounds(case: Case) -> None:
    config = ProgressiveConfig(sparsity=0.5, rounds=2)
    progressive(
        case.model, config, lambda net, s: prune(net, PruningConfig(sparsity=s)), lambda net: None,
        case.score,
    )  # fmt: skip
    case.is_half_zero()


def ticket(case: Case) -> None:
    config = LotteryConfig(sparsity=0.5, rounds=1, rewind_step=1)
    assert find_ticket(case.model, config, case.train)[-1].sparsity == pytest.approx(0.5, abs=0.02)


def smaller(case: Case) -> None:
    before = count_parameters(case.model)
    shrink(case.model, ShrinkConfig(macs=0.7), case.loader)
    assert count_parameters(case.model) < before
    assert case.answers().isfinite().all()


def saved(case: Case) -> None:
    shrink(case.model, ShrinkConfig(macs=0.7, score="magnitude", repair="none"), case.loader)
    prune(case.model, HALF)
    save_module(case.model, case.folder / "small", sparse=True)
    expected = case.answers()
    case.model = load_module(case.folder / "small", case.network.make)
    assert torch.equal(case.answers(), expected)


def layers(case: Case) -> None:
    before = case.answers()
    assert sensitivity(case.model, HALF, case.score, (0.5,))
    assert torch.equal(case.answers(), before)


def learns(case: Case) -> None:
    before = copy.deepcopy(case.model)
    distill(case.network.model(), case.model, case.loader, epochs=1)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(before.parameters(), case.model.parameters(), strict=True)
    )


def int8(backend: Any, mode: Any) -> Callable[[Case], None]:
    def run(case: Case) -> None:
        pytest.importorskip(backend)
        small = quantize(case.model, QuantizationConfig(backend=backend, mode=mode), case.loader)
        found = small(case.network.rows(4)[0]).logits
        assert found is not None
        assert found.shape == case.answers().shape

    return run


def swept(case: Case) -> None:
    result = sweep_module(
        case.model, case.loader, [{"prune": {}}], {"prune.sparsity": [0, 0.5]}, case.loader
    )
    assert [row["requested_sparsity"] for row in result] == [0, 0.5]
    assert result[0]["value"] == pytest.approx(case.score(case.model))


def piped(case: Case) -> None:
    pipeline = CompressionPipeline([ShrinkConfig(macs=0.7), case.train, HALF, case.train])
    found = pipeline.run_module(case.model, case.loader, case.loader)
    assert len(found.rows) == 5
    assert found.rows[-1]["actual_sparsity"] == pytest.approx(0.5, abs=0.03)


VERBS: dict[str, Callable[[Case], object]] = {
    "prune": by_method("magnitude"),
    "wanda": by_method("wanda"),
    "sparsegpt": by_method("sparsegpt"),
    "taylor": by_method("taylor"),
    "progressive": rounds,
    "find_ticket": ticket,
    "sensitivity": layers,
    "shrink": smaller,
    "distill": learns,
    "save": saved,
    "quantize in torch": int8("torch", "dynamic"),
    "sweep": swept,
    "pipeline": piped,
    "compress": lambda case: compress(case.model, "x", CompressTarget(max_size="1MB")),  # type: ignore[arg-type]
    "bench": lambda case: bench([case.model]),  # type: ignore[list-item]
    "check": lambda case: check(case.model),  # type: ignore[arg-type]
    "save_compressed": lambda case: save_compressed(case.model, case.folder / "x"),  # type: ignore[arg-type]
    "vocabulary": lambda case: shrink_vocabulary(case.model, None, []),  # type: ignore[arg-type]
}
REFUSED = {
    ("lstm tagger", "quantize in torch"): TAGGED,
    **{(kind, "compress"): TRANSFORMERS + "compress_module" for kind in NETWORKS},
    **{(kind, "bench"): "bench times saved models" for kind in NETWORKS},
    **{(kind, "check"): TRANSFORMERS + "call prune" for kind in NETWORKS},
    **{(kind, "save_compressed"): TRANSFORMERS + "save_module" for kind in NETWORKS},
    **{(kind, "vocabulary"): TRANSFORMERS + "shrink removes" for kind in NETWORKS},
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_each_verb_works_or_is_refused_in_a_sentence(kind: str, verb: str, tmp_path: Path) -> None:
    if kind == "course teacher" and verb in ("sparsegpt", "pipeline", "shrink"):
        pytest.skip("as the course's student, and slow")
    case = Case(NETWORKS[kind], tmp_path)
    refused = REFUSED.get((kind, verb))
    if refused is None:
        VERBS[verb](case)
        return
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    with pytest.raises(BadInputError, match=refused) as caught:
        VERBS[verb](case)
    assert "\n" not in str(caught.value)
    after = case.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["mlp", "transformer encoder"])
def test_onnx_runtime_takes_modules_with_equal_weights(kind: str, tmp_path: Path) -> None:
    """The layers of a new ``nn.TransformerEncoder`` are copies of each other."""
    int8("onnxruntime", "dynamic")(Case(NETWORKS[kind], tmp_path))
