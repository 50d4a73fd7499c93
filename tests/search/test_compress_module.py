"""Any module made small enough: the first candidate below the size is the answer, or nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hfcompress import CompressTarget, compress_module
from hfcompress.errors import ConfigError
from hfcompress.quantization.model import QuantizedModel
from tests.plain_networks import NETWORKS

NETWORK = NETWORKS["mlp"]


def target(**fields: Any) -> CompressTarget:
    return CompressTarget.from_dict({"backend": "torch", "max_drop": 100.0, **fields})


def test_the_first_that_is_small_enough_is_the_answer(tmp_path: Path) -> None:
    trained: list[int] = []

    def train(model: nn.Module) -> None:
        trained.append(sum(p.numel() for p in model.parameters()))

    model, loader = NETWORK.model(), NETWORK.loader()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = compress_module(
        model, loader, target(max_size=1900), loader, train=train, output=tmp_path / "run"
    )
    assert found.found is not None
    sizes = [row["bytes"] for row in found.rows]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size > 1900 for size in sizes[:-1])
    assert sizes[-1] <= 1900
    assert len(trained) == len(found.rows) - 1  # int8 alone is not trained
    assert isinstance(found.model, QuantizedModel)
    assert "times smaller" in found.sentence
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    again = compress_module(
        model, loader, target(max_size=1900), loader, train=train, output=tmp_path / "run"
    )
    assert again.rows == found.rows
    assert again.model is not None


def test_what_loses_too_much_or_is_never_small_enough_is_said() -> None:
    model, loader = NETWORK.model(), NETWORK.loader()
    calls = 0

    def worse(net: object) -> float:
        nonlocal calls
        calls += 1
        return 1.0 / calls

    found = compress_module(model, worse, target(max_size="1MB", max_drop=1.0), loader)
    assert found.model is None
    assert "loses more than 1 points" in found.sentence
    with pytest.raises(ConfigError, match="there is nothing to save"):
        found.save("x")
    none = compress_module(model, lambda net: 1.0, target(max_size=10), loader)
    assert none.found is None
    assert "nothing that was tried is below" in none.sentence
    assert len(none.rows) == 9


def test_targets_for_transformers_models_are_refused() -> None:
    asked = target(max_size="1MB", speedup=3)
    with pytest.raises(ConfigError, match="speedup is for transformers models: leave it out"):
        compress_module(NETWORK.model(), NETWORK.loader(), asked, NETWORK.loader())
    with pytest.raises(ConfigError, match="speedup"):
        compress_module(NETWORK.model(), NETWORK.loader(), CompressTarget(speedup=3))
