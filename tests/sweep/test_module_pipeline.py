"""`CompressionPipeline.run_module`: steps on any module, each a row; saved and given back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hfcompress import (
    CompressionPipeline,
    PruningConfig,
    QuantizationConfig,
    ShrinkConfig,
    evaluate,
    load_module,
    train_one_epoch,
)
from hfcompress.errors import ConfigError, HfcompressError
from hfcompress.quantization.model import QuantizedModel
from tests.plain_networks import NETWORKS, Mlp

pytestmark = pytest.mark.usefixtures("shared_exports")

NETWORK = NETWORKS["mlp"]


def train(model: nn.Module) -> None:
    train_one_epoch(model, NETWORK.loader(), torch.optim.SGD(model.parameters(), lr=0.1))


def test_each_step_of_a_module_is_a_row(tmp_path: Path) -> None:
    model, held_out = NETWORK.model(), NETWORK.loader(seed=5)
    pipeline = CompressionPipeline([
        ShrinkConfig(macs=0.6), train, PruningConfig(sparsity=0.8), train,
    ])  # fmt: skip
    result = pipeline.run_module(model, NETWORK.loader(), held_out, tmp_path / "run")
    assert [row["method"] for row in result.rows] == [
        "dense", "shrink", "function", "prune", "function 2",
    ]  # fmt: skip
    assert [row["index"] for row in result.rows] == [0, 1, 2, 3, 4]
    assert result.rows[0]["value"] == pytest.approx(evaluate(model, held_out))
    assert isinstance(result.model, nn.Module)
    assert result.rows[-1]["value"] == pytest.approx(evaluate(result.model, held_out))
    assert result.rows[-1]["actual_sparsity"] == pytest.approx(0.8, abs=0.02)
    assert {"bars.png", "report.html"} <= {path.name for path in (tmp_path / "run").iterdir()}

    again = load_module(result.save(tmp_path / "small"), Mlp)
    rows, _ = NETWORK.rows()
    assert torch.equal(again(rows), result.model(rows))
    resumed = pipeline.run_module(model, NETWORK.loader(), held_out, tmp_path / "run")
    assert resumed.rows == result.rows
    assert isinstance(resumed.model, nn.Module)
    assert torch.equal(resumed.model(rows), result.model(rows))  # made again, by the same seeds


def test_a_pipeline_that_ends_in_int8_gives_the_quantized_module(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    steps = [PruningConfig(sparsity=0.5), QuantizationConfig(backend="onnxruntime")]
    pipeline = CompressionPipeline(steps)
    result = pipeline.run_module(Mlp, NETWORK.loader(), lambda net: 0.5)
    assert isinstance(result.model, QuantizedModel)
    assert [row["value"] for row in result.rows] == [0.5, 0.5, 0.5]
    assert (result.save(tmp_path / "small") / "hfcompress.json").is_file()


def fails(model: nn.Module) -> None:
    raise RuntimeError("out of patience")


def test_a_step_that_fails_ends_it_and_functions_are_for_modules(tmp_path: Path) -> None:
    pipeline = CompressionPipeline([PruningConfig(sparsity=0.5), fails])
    with pytest.raises(HfcompressError, match="out of patience"):
        pipeline.run_module(Mlp, NETWORK.loader(), NETWORK.loader(), tmp_path / "run")
    with pytest.raises(ConfigError, match="functions train modules in run_module"):
        pipeline.run(None, None, "x")  # type: ignore[arg-type]
