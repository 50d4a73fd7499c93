"""Core ML packages: what is converted, and that nothing pretends to have run them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import hfcompress
from hfcompress.errors import ConfigError, MissingExtraError, ModelError
from hfcompress.quantization.backends.coreml import _prepare
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays
from hfcompress.quantization.example_script import example_script
from hfcompress.quantization.quantize import quantize
from hfcompress.recipes.schema import parse_recipe
from hfcompress.search.target import CompressTarget
from hfcompress.sweep.run import run
from tests.plain_networks import NETWORKS
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

COREML = QuantizationConfig(backend="coreml")


def test_recipes_and_searches_refuse_what_they_cannot_measure(
    model_folder: Path, write_data: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = parse_recipe(
        {
            "model": str(model_folder),
            "data": {"path": str(write_data())},
            "steps": [{"quantize": {"backend": "coreml"}}],
        }
    )
    with pytest.raises(ConfigError, match="runs on Apple's systems alone, so nothing can be meas"):
        run(recipe, tmp_path / "run")
    with pytest.raises(ConfigError, match="runs on Apple's systems alone"):
        CompressTarget.from_dict({"max_size": "1MB", "backend": "coreml"})


@pytest.mark.parametrize(
    "option", [{"mode": "dynamic"}, {"per_channel": False}, {"exclude": ("*",)}]
)
def test_options_that_it_lacks_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="coreml"):
        QuantizationConfig(backend="coreml", **option)


def test_a_graph_has_what_the_converter_asks_for() -> None:
    class Pools(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            same: torch.Tensor = torch.ops.aten.alias(torch.max_pool2d(x, 2))
            return same + 1

    example = torch.randn(1, 2, 6, 6)
    exported = torch.export.export(Pools(), (example,))
    _prepare(exported.graph)
    calls = {str(node.target): node.args for node in exported.graph.nodes}
    assert not any("alias" in name for name in calls)
    (pool,) = (args for name, args in calls.items() if "max_pool" in name)
    assert list(pool[1]) == list(pool[2]) == [2, 2]
    exported.graph.lint()


def test_the_example_is_a_program() -> None:
    compile(example_script("coreml", "classification"), "example.py", "exec")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "coremltools", None)
    with pytest.raises(MissingExtraError, match=r"hfcompress\[coreml\]"):
        quantize(tiny_bert(), COREML)


# --- with coremltools --------------------------------------------------------------------------


def integers_of(path: Path) -> list[NDArray[np.generic]]:
    """The weights of a package as coremltools lists them: int8 where they are dequantized."""
    tools = pytest.importorskip("coremltools")
    package = tools.models.MLModel(str(path), skip_model_load=True)
    weights = pytest.importorskip("coremltools.optimize.coreml").get_weights_metadata(
        package, weight_threshold=0
    )
    return [np.asarray(item.val) for item in weights.values()]


@pytest.mark.parametrize("name", ["course student", "residual", "transformer encoder"])
def test_networks_are_converted_with_integers_near_their_weights(name: str) -> None:
    pytest.importorskip("coremltools")
    network = NETWORKS[name]
    model = network.model()
    before = copy.deepcopy(model.state_dict())
    made = quantize(model, COREML, network.loader())
    assert made.distance is None
    assert any("not run here" in note for note in made.notes)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    dense = quantize(model, QuantizationConfig(backend="coreml", mode="none"), network.loader())
    assert made.bytes < dense.bytes
    if name == "course student":
        assert made.bytes < 0.28 * sum(p.nbytes for p in model.parameters())
        kept = {array.size: array for array in integers_of(made.engine.path)}  # type: ignore[attr-defined]
        weight = model.get_parameter("fc1.weight").detach().numpy()
        step = np.abs(weight).max(1, keepdims=True) / 127
        found = kept[weight.size].reshape(weight.shape)
        assert np.abs(found - weight / step).max() <= 0.51


def test_a_folder_says_where_it_runs(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    made = quantize(tiny_bert(), COREML)
    folder = made.save(tmp_path / "app", tiny_tokenizer())
    assert (folder / "model.mlpackage" / "Manifest.json").is_file()
    assert {"example.py", "tokenizer.json", "config.json"} <= {f.name for f in folder.iterdir()}
    card = (folder / "README.md").read_text()
    assert "on macOS" in card
    assert "hfcompress.load" not in card
    loaded: Any = hfcompress.load(folder)
    assert loaded.engine.shapes["input_ids"] == (1, 64)  # no more than the model's positions
    with pytest.raises(ModelError, match="runs on macOS and iOS only"):
        loaded("a good film")
    again = pickle.loads(pickle.dumps(made))
    assert again.engine.digest == made.engine.digest == loaded.engine.digest
    (folder / "model.mlpackage" / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(b"x")
    with pytest.raises(ModelError):
        hfcompress.load(folder)


def test_static_rows_fit_a_models_positions() -> None:
    from hfcompress.quantization.phone import static_rows

    rows: list[Arrays] = static_rows(tiny_bert(), [], 1)
    assert rows[0]["input_ids"].shape == (1, 64)
