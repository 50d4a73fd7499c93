"""Every method, pattern and option through prune()."""

from __future__ import annotations

import ast
import copy
import functools
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.moments import weight_of
from hfcompress.errors import CalibrationError, ConfigError, ModelError, TargetError
from hfcompress.models.architectures import compressible_modules, default_targets
from hfcompress.models.matrices import weight_matrix
from hfcompress.pruning.config import PruningConfig, SparseGPTConfig
from hfcompress.pruning.prune import PruneReport, prune
from tests.tiny_models import lively_bert, sentence_batches

METHODS = (
    "magnitude", "lamp", "random", "wanda", "sparsegpt", "alps", "taylor", "fisher", "obert",
)  # fmt: skip
Options = dict[str, Any]


def pruned(**options: Any) -> tuple[dict[str, Tensor], PruneReport]:
    """State of a tiny model after pruning it with these options."""
    model = lively_bert()
    options = {"sparsity": 0.6, **options}
    report = prune(model, PruningConfig.from_dict(options), Calibration(sentence_batches()))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, report


def differs(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.3, 0.77])
def test_every_method_reaches_its_sparsity(method: str, sparsity: float) -> None:
    state, report = pruned(method=method, sparsity=sparsity)
    for layer in report.layers:
        weight = state[f"{layer.name}.weight"]
        assert int((weight == 0).sum()) == layer.zeros
        assert abs(layer.zeros - layer.requested) <= 1
    assert abs(report.zeros - round(sparsity * report.weights)) <= len(report.layers)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["2:4", "1:3", "4:8"])
def test_every_method_keeps_n_of_m(method: str, pattern: str) -> None:
    state, report = pruned(method=method, pattern=pattern, sparsity=None)
    keep, group = map(int, pattern.split(":"))
    for layer in report.layers:
        weight = state[f"{layer.name}.weight"]
        assert layer.zeros == layer.requested
        for start in range(0, weight.shape[1], group):
            part = weight[:, start : start + group]
            kept = -(-part.shape[1] * keep // group)
            assert (part != 0).sum(1).tolist() == [kept] * len(part)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_drops_whole_blocks(method: str) -> None:
    state, report = pruned(method=method, pattern="4x3")
    for layer in report.layers:
        zero = state[f"{layer.name}.weight"] == 0
        for top in range(0, zero.shape[0], 4):
            for left in range(0, zero.shape[1], 3):
                block = zero[top : top + 4, left : left + 3]
                assert bool(block.all()) or not bool(block.any())
        assert abs(layer.zeros - layer.requested) <= 4 * 3 * -(-zero.shape[1] // 129)


@pytest.mark.parametrize("method", METHODS)
def test_global_scope_has_one_total(method: str) -> None:
    _, report = pruned(method=method, scope="global")
    assert report.zeros == round(0.6 * report.weights)
    assert len({round(layer.sparsity, 3) for layer in report.layers}) > 1


@pytest.mark.parametrize("allocation", ["owl", "optimal"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_allocations_have_one_total(method: str, allocation: str) -> None:
    _, report = pruned(method=method, allocation=allocation)
    assert report.zeros == round(0.6 * report.weights)
    assert len({round(layer.sparsity, 3) for layer in report.layers}) > 1


OPTIONS: list[tuple[Options, Options]] = [
    *(({"method": one}, {"method": other}) for one, other in pairwise(METHODS)),
    ({"sparsity": 0.5}, {"sparsity": 0.6}),
    ({"scope": "layer"}, {"scope": "row"}),
    ({"method": "wanda", "scope": "layer"}, {"method": "wanda"}),
    ({"method": "sparsegpt"}, {"method": "sparsegpt", "scope": "row"}),
    ({"pattern": "2x2"}, {"pattern": "4x1"}),
    ({"allocation": "uniform"}, {"allocation": "owl"}),
    ({"allocation": "owl"}, {"allocation": "optimal"}),
    ({"targets": ("*.attention.*",)}, {}),
    ({"exclude": ("query",)}, {}),
    ({"bias_repair": True}, {}),
    ({"method": "wanda", "bias_repair": True}, {"method": "wanda"}),
    ({"method": "alps", "bias_repair": False}, {"method": "alps"}),
    ({"method": "wanda", "statistics": "sequential"}, {"method": "wanda"}),
    ({"method": "sparsegpt", "statistics": "dense"}, {"method": "sparsegpt"}),
    ({"bias_repair": True, "statistics": "dense"}, {"bias_repair": True}),
    ({"method": "sparsegpt", "reference": "outputs"}, {"method": "sparsegpt"}),
    ({"method": "alps", "reference": "weights"}, {"method": "alps"}),
    ({"bias_repair": True, "reference": "outputs"}, {"bias_repair": True}),
    ({"method": "sparsegpt", "sparsegpt": {"output_importance": 0.5}}, {"method": "sparsegpt"}),
    ({"method": "alps", "alps": {"output_importance": 1.0}}, {"method": "alps"}),
    ({"method": "sparsegpt", "sparsegpt": {"token_importance": 0.5}}, {"method": "sparsegpt"}),
    ({"method": "wanda", "calibration_rows": 5}, {"method": "wanda"}),
    ({"method": "sparsegpt", "sparsegpt": {"damping": 1.0}}, {"method": "sparsegpt"}),
    ({"method": "alps", "alps": {"damping": 1.0}}, {"method": "alps"}),
    ({"method": "alps", "alps": {"token_importance": 0.5}}, {"method": "alps"}),
    ({"method": "sparsegpt", "sparsegpt": {"block_size": 8}}, {"method": "sparsegpt"}),
    ({"method": "alps", "alps": {"iterations": 2}}, {"method": "alps"}),
    ({"method": "taylor", "recomputations": 3}, {"method": "taylor"}),
    ({"method": "obert", "recomputations": 3}, {"method": "obert"}),
    ({"method": "obert", "obert": {"block": 10}}, {"method": "obert"}),
    ({"method": "obert", "obert": {"damping": 1.0}}, {"method": "obert"}),
    ({"allocation": "owl", "owl": {"multiple": 2.0}}, {"allocation": "owl"}),
    ({"allocation": "owl", "owl": {"spread": 0.2}}, {"allocation": "owl"}),
    ({"allocation": "optimal", "optimal": {"max_sparsity": 0.62}}, {"allocation": "optimal"}),
    ({"method": "random", "seed": 1}, {"method": "random"}),
    ({"allocation": "optimal", "seed": 5}, {"allocation": "optimal"}),
]  # fmt: skip


def paths(options: Options) -> Iterator[str]:
    """Dotted names of all fields, those of groups included."""
    for name, value in options.items():
        yield from (f"{name}.{inner}" for inner in value) if isinstance(value, dict) else [name]


@functools.cache
def base_of(options: str) -> dict[str, Tensor]:
    """State after pruning with options that several tests compare with."""
    return pruned(**ast.literal_eval(options))[0]


@pytest.mark.parametrize(("options", "without"), OPTIONS, ids=str)
def test_every_option_changes_the_result(options: Options, without: Options) -> None:
    assert differs(pruned(**options)[0], base_of(str(without)))


def test_every_option_is_in_the_list_above() -> None:
    named = {path for pair in OPTIONS for options in pair for path in paths(options)}
    unnamed = set(paths(PruningConfig(sparsity=0.5).to_dict())) - named
    # Text is made by a recipe alone (tests/recipe/test_context.py), and where activations lie
    # must change nothing:
    assert unnamed == {"activation_memory", "augmented_rows"}
    state, _ = pruned(method="sparsegpt", activation_memory=0)
    assert not differs(state, pruned(method="sparsegpt")[0])


def test_sequential_sparsegpt_errs_less_than_magnitude() -> None:
    def error(**options: Any) -> float:
        model, total = lively_bert(), 0.0
        batches = sentence_batches(batches=12)
        prune(model, PruningConfig.from_dict({"sparsity": 0.6, **options}), Calibration(batches))
        with torch.no_grad():
            for batch in batches:
                dense = lively_bert()(**batch).logits
                total += float((model(**batch).logits - dense).square().sum())
        return total

    magnitude, sparsegpt, alps = (error(method=m) for m in ("magnitude", "sparsegpt", "alps"))
    assert sparsegpt < magnitude
    assert alps < sparsegpt


def test_bias_repair_keeps_each_layers_mean_output() -> None:
    model, batches = lively_bert(), sentence_batches()
    calibration = Calibration(batches)
    config = PruningConfig(sparsity=0.6, bias_repair=True, statistics="dense")
    modules = default_targets(model)
    mean = {name: m.mean[0] for name, m in calibration.moments(model, modules).items()}
    with torch.no_grad():
        before = {name: module(mean[name]) for name, module in modules.items()}
        prune(model, config, calibration)
        for name, module in modules.items():
            torch.testing.assert_close(module(mean[name]), before[name], rtol=1e-4, atol=1e-4)


class Convolutions(nn.Module):
    """A plain, a grouped and a depthwise convolution, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding="same")
        self.head = nn.Linear(8, 2)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        x = self.depthwise(self.grouped(self.stem(pixel_values).relu()).relu()).relu()
        logits = self.head(x.mean((2, 3)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return type("Result", (), {"loss": loss, "logits": logits})()


def pictures() -> Calibration:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 9, 9, generator=generator)
    return Calibration([{"pixel_values": images, "labels": torch.arange(6) % 2}])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("extra", [{}, {"bias_repair": True}, {"allocation": "optimal"}], ids=str)
def test_convolutions(method: str, extra: Options) -> None:
    torch.manual_seed(0)
    model = Convolutions()
    config = PruningConfig.from_dict({"method": method, "sparsity": 0.5, "scope": "layer", **extra})
    report = prune(model, config, pictures())
    assert [layer.name for layer in report.layers] == ["stem", "grouped", "depthwise"]
    for layer in report.layers:
        assert abs(layer.zeros - layer.requested) <= 1
    assert report.zeros == round(0.5 * report.weights)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_conv1d_is_pruned_along_its_inputs(method: str, pattern: str) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60, pad_token_id=0)
    model: Any = GPT2ForSequenceClassification(config)
    options = {"method": method, "sparsity": 0.5, "pattern": pattern}
    report = prune(model, PruningConfig.from_dict(options), Calibration(sentence_batches()))
    assert report.zeros == round(0.5 * report.weights)
    for name, module in compressible_modules(model).items():
        if isinstance(module, Conv1D) and pattern == "2:4":
            groups = (weight_matrix(module) != 0).reshape(-1, 4).sum(1)
            assert set(groups.tolist()) == {2}, name


def test_tied_weights_are_pruned_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    model[1].weight = model[0].weight
    report = prune(model, PruningConfig(sparsity=0.5))
    assert [layer.name for layer in report.layers] == ["0"]
    assert report.zeros == int((weight_of(model[1]) == 0).sum()) == 18


def test_a_sweep_shares_what_was_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration, passes = Calibration(sentence_batches()), 0
    run = calibration.run

    def counted(model: nn.Module, index: int) -> object:
        nonlocal passes
        passes += 1
        return run(model, index)

    monkeypatch.setattr(calibration, "run", counted)
    for sparsity in (0.3, 0.5, 0.7):
        for method in ("wanda", "sparsegpt"):
            config = PruningConfig.from_dict(
                {"method": method, "sparsity": sparsity, "statistics": "dense"}
            )
            prune(lively_bert(), config, calibration)
    # Norms and moments: a pass each. One batch shows which layers are called, and one which of
    # them share an input.
    assert passes <= 2 * (len(calibration.batches) + 1)


def test_constant_inputs_are_damped_with_a_word() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.first(x))
            return out

    model = Constant()
    config = PruningConfig(method="sparsegpt", sparsity=0.5, sparsegpt=SparseGPTConfig(damping=0.0))
    report = prune(model, config, Calibration([{"x": torch.ones(8, 4)}]))
    assert "first: the Gram matrix is singular and was damped" in report.notes[0]
    assert report.zeros == 8


def test_missing_calibration_is_refused() -> None:
    with pytest.raises(CalibrationError, match="needs calibration data"):
        prune(lively_bert(), PruningConfig(method="wanda", sparsity=0.5))


def test_too_few_rows_are_refused() -> None:
    config = PruningConfig(method="wanda", sparsity=0.5, calibration_rows=100)
    with pytest.raises(CalibrationError, match="asks for 100 rows and there are 18"):
        prune(lively_bert(), config, Calibration(sentence_batches()))


def test_nan_is_refused_before_anything_changes() -> None:
    model = lively_bert()
    model.bert.encoder.layer[1].output.dense.weight.data[0, 0] = float("inf")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match="NaN or infinity"):
        prune(model, PruningConfig(sparsity=0.5))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("pattern", ["4:64", "64x1", "1x64"])
def test_a_layer_that_cannot_hold_the_pattern_is_named(pattern: str) -> None:
    options = {"pattern": pattern, "sparsity": None if ":" in pattern else 0.5}
    with pytest.raises(TargetError, match=r"query has 32 outputs and 32 inputs and cannot hold"):
        prune(lively_bert(), PruningConfig.from_dict(options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "sparsity is missing"),
        ({"sparsity": 0.6, "pattern": "2:4"}, "makes sparsity 0.5, not 0.6"),
        ({"pattern": "2:4", "scope": "global"}, "fixes each layer's sparsity"),
        ({"pattern": "2:4", "allocation": "owl"}, "fixes each layer's sparsity"),
        ({"pattern": "2:4", "recomputations": 2}, "cannot be reached in steps"),
        ({"sparsity": 0.5, "scope": "global", "allocation": "owl"}, "allocation itself"),
        ({"sparsity": 0.5, "sparsegpt": {"token_importance": 0.5}}, "needs statistics: sequential"),
        ({"sparsity": 0.5, "scope": "row", "pattern": "4x1"}, "scope row does not go"),
        ({"sparsity": 0.5, "pattern": "4/1"}, "pattern: must be 'unstructured'"),
        ({"sparsity": 0.5, "method": "wande"}, "method"),
    ],
)
def test_contradictions_are_refused(options: Options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruningConfig.from_dict(options)
