"""Models whose layers differ from an encoder's: what `prune` does with them, and what it says."""

from __future__ import annotations

import copy
import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from transformers import (
    PvtV2Config,
    PvtV2ForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hfcompress.calibration.batches import Calibration
from hfcompress.errors import ModelError, TargetError
from hfcompress.models.matrices import weight_matrix, write_matrix
from hfcompress.pruning import layer_solver, oneshot
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import prune
from hfcompress.pruning.sensitivity import sensitivity
from hfcompress.pruning.targets import UNKNOWN, select_targets
from hfcompress.pruning.training_config import PruningTrainingConfig
from hfcompress.pruning.training_masks import TrainingMasks


def zeros(weight: Tensor) -> float:
    return float((weight == 0).float().mean())


class Pooled(nn.Module):
    """``side`` runs and does not reach the logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.side, self.out = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        states = self.first(x).relu()
        self.side(states)
        logits: Tensor = self.out(states)
        return logits


def test_a_layer_that_does_not_reach_the_logits_is_pruned_and_named() -> None:
    model = Pooled()
    batches = [{"x": torch.randn(32, 8)}]
    report = prune(model, PruningConfig(method="alps", sparsity=0.6), Calibration(batches))
    assert zeros(model.side.weight) == round(0.6 * 256) / 256
    assert abs(report.actual - 0.6) < 1e-2
    assert "side: not connected to the model's output" in " ".join(report.notes)


def tiny_t5() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1,
        "num_decoder_layers": 2, "num_heads": 2, "decoder_start_token_id": 0,
    }  # fmt: skip
    model: nn.Module = T5ForConditionalGeneration(T5Config(**sizes))
    return model.eval()


def tiny_pvt() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "image_size": 32, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2], "num_labels": 3,
    }  # fmt: skip
    model: nn.Module = PvtV2ForImageClassification(PvtV2Config(**sizes))
    return model.eval()


def text_batches() -> list[dict[str, Tensor]]:
    ids = torch.randint(3, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1:, 8:] = 0
    return [{"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :7]}] * 2


def image_batches() -> list[dict[str, Tensor]]:
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": pixels}]


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "alps"])
@pytest.mark.parametrize(("make", "batches"), [(tiny_t5, text_batches), (tiny_pvt, image_batches)])
def test_every_target_of_cross_attention_and_pyramids_gets_its_zeros(
    method: str, make: Callable[[], nn.Module], batches: Callable[[], list[dict[str, Tensor]]]
) -> None:
    model = make()
    config = PruningConfig.from_dict({"method": method, "sparsity": 0.5, "allocation": "uniform"})
    report = prune(model, config, Calibration(batches()))
    found = [zeros(weight_matrix(model.get_submodule(layer.name))) for layer in report.layers]
    assert min(found) > 0.45
    assert abs(report.actual - 0.5) < 1e-2
    if isinstance(model, T5ForConditionalGeneration):
        assert model.config.use_cache
        assert model.decoder.config.use_cache


def test_a_decoder_reads_the_labels_where_no_inputs_are_given() -> None:
    ids = torch.randint(3, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    labels = ids[:, :7].contiguous()
    shifted = torch.cat([torch.zeros(4, 1, dtype=torch.long), labels[:, :-1]], 1)
    weights = []
    for batch in ({"labels": labels}, {"decoder_input_ids": shifted}):
        model = tiny_t5()
        config = PruningConfig(method="sparsegpt", sparsity=0.5)
        prune(model, config, Calibration([{"input_ids": ids, **batch}]))
        weights.append(model.get_parameter("decoder.block.1.layer.2.DenseReluDense.wo.weight"))
    assert torch.equal(*weights)


class Encoder(nn.Module):
    """torch's own encoder and decoder layers, and a head."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.cross = nn.MultiheadAttention(16, 2, batch_first=batch_first, kdim=12, vdim=12)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        states = self.encoder(x)
        mixed = states + self.cross(states, memory, memory)[0]
        logits: Tensor = self.out(mixed.mean(1 if self.cross.batch_first else 0))
        return logits


class Signals(nn.Module):
    """Convolutions of 1 and 3 dimensions, a transposed one, recurrent layers, bare matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv1d(4, 16, 3, padding=1, groups=2)
        self.cube = nn.Conv3d(1, 8, 3, padding=1)
        self.up = nn.ConvTranspose1d(16, 16, 2, stride=2)
        self.memory = nn.LSTM(16, 16, batch_first=True)
        self.step = nn.GRUCell(16, 16)
        self.text_projection = nn.Parameter(torch.randn(16, 16))
        self.latents = nn.Parameter(torch.randn(8, 16))
        self.register_buffer("table", torch.zeros(3, 3))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        states = self.up(self.first(x)).transpose(1, 2)
        states, _ = self.memory(states)
        found = self.cube(states[:, None, None]).mean((1, 2))
        mixed = self.step(found[:, -1]) @ self.text_projection + self.latents.mean(0)
        logits: Tensor = self.out(mixed)
        return logits


def encoder_batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 16, generator=generator)
    memory = torch.randn(6, 5, 12, generator=generator)
    return [{"x": x, "memory": memory, "labels": torch.arange(6) % 3}] * 2


def signal_batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6) % 3
    return [{"x": torch.randn(6, 4, 10, generator=generator), "labels": labels}] * 2


IN_PROJECTIONS = [
    "encoder.layers.0.self_attn.in_proj_weight",
    "encoder.layers.1.self_attn.in_proj_weight",
    "cross.q_proj_weight",
    "cross.k_proj_weight",
    "cross.v_proj_weight",
]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "alps"])
def test_attention_of_torch_is_pruned_with_its_projections(method: str, batch_first: bool) -> None:
    model = Encoder(batch_first)
    config = PruningConfig.from_dict({"method": method, "sparsity": 0.5, "allocation": "uniform"})
    report = prune(model, config, Calibration(encoder_batches()))
    assert {layer.name for layer in report.layers} >= set(IN_PROJECTIONS)
    assert "encoder.layers.0.self_attn.out_proj" in {layer.name for layer in report.layers}
    for layer in report.layers:
        assert layer.zeros == round(0.5 * layer.weights)
    for name in IN_PROJECTIONS:
        assert zeros(model.get_parameter(name)) == 0.5
    assert report.notes == ()
    assert "forward" not in vars(model.cross)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_wrapped_forward_of_attention_comes_back() -> None:
    model = Encoder()
    whole = model.cross.forward
    wrapped = functools.partial(whole)
    vars(model.cross)["forward"] = wrapped
    prune(model, PruningConfig(method="wanda", sparsity=0.5), Calibration(encoder_batches()))
    assert vars(model.cross)["forward"] is wrapped


def test_attention_with_a_computed_projection_may_be_excluded() -> None:
    model = Encoder()
    attention = model.get_submodule("encoder.layers.0.self_attn")
    parametrizations.weight_norm(attention, "in_proj_weight")
    config = PruningConfig(method="wanda", sparsity=0.5, exclude=("*in_proj_weight",))
    report = prune(model, config, Calibration(encoder_batches()))
    reason = report.untouched["encoder.layers.0.self_attn.out_proj"]
    assert reason == "it is never called in a forward pass"
    with pytest.raises(ModelError, match="remove_parametrizations"):
        prune(model, config.replace(exclude=None), Calibration(encoder_batches()))


def test_reconstruction_of_attention_beats_magnitude() -> None:
    (batch, _), losses = encoder_batches(), {}
    inputs = {name: batch[name] for name in ("x", "memory")}
    with torch.no_grad():
        dense = Encoder().eval()(**inputs)
        for method in ("magnitude", "sparsegpt"):
            model = Encoder().eval()
            prune(
                model,
                PruningConfig.from_dict({"method": method, "sparsity": 0.6, "targets": ["*proj*"]}),
                Calibration(encoder_batches()),
            )
            losses[method] = float((model(**inputs) - dense).square().mean())
    assert losses["sparsegpt"] < 0.7 * losses["magnitude"]


RECURRENT = ["memory.weight_ih_l0", "memory.weight_hh_l0", "step.weight_ih", "step.weight_hh"]


@pytest.mark.parametrize("method", ["magnitude", "lamp", "random", "taylor", "fisher", "obert"])
def test_every_matrix_is_pruned_where_no_inputs_are_needed(method: str) -> None:
    model = Signals()
    config = PruningConfig.from_dict({"method": method, "sparsity": 0.5, "scope": "layer"})
    report = prune(model, config, Calibration(signal_batches()))
    expected = ["text_projection", "first", "cube", "up", *RECURRENT]
    assert [layer.name for layer in report.layers] == expected
    assert abs(report.actual - 0.5) < 1e-2
    for name in (*RECURRENT, "text_projection", "first.weight", "cube.weight", "up.weight"):
        assert abs(zeros(model.get_parameter(name)) - 0.5) < 0.01
    matrices = [p for p in model.parameters() if p.dim() > 1]
    found = sum(int((p == 0).sum()) for p in matrices) / sum(p.numel() for p in matrices)
    assert report.overall == pytest.approx(found)
    assert report.untouched["out"] == "head"
    assert any("latents stays dense: a bare parameter" in note for note in report.notes)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "alps"])
def test_matrices_whose_inputs_are_unknown_stay_dense_and_are_named(method: str) -> None:
    model = Signals()
    config = PruningConfig.from_dict({"method": method, "sparsity": 0.5, "allocation": "uniform"})
    report = prune(model, config, Calibration(signal_batches()))
    assert [layer.name for layer in report.layers] == ["first", "cube", *RECURRENT]
    for layer in report.layers:
        assert layer.zeros == round(0.5 * layer.weights)
    for name, kind in (("up", "ConvTranspose1d"), ("text_projection", "Signals")):
        assert any(name in note and kind in note for note in report.notes)
        assert name in report.untouched
    assert zeros(model.get_parameter("memory.weight_hh_l0")) == 0.5


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_masks_of_a_training_hold_every_matrix(pattern: str) -> None:
    model = Signals()
    config = PruningTrainingConfig.from_dict(
        {"method": "magnitude", "sparsity": 0.5, "pattern": pattern}
    )
    masks = TrainingMasks(model, config, 10)
    masks.update(masks.schedule.last_update)
    for name in (*RECURRENT, "text_projection", "first.weight", "cube.weight", "up.weight"):
        assert abs(zeros(model.get_parameter(name)) - 0.5) < 0.04, name
    if pattern == "2:4":  # of every four consecutive inputs of each output
        grouped = model.up.weight.detach().transpose(0, 1).reshape(16, -1, 4)
        assert (grouped != 0).sum(-1).max() == 2


def test_sensitivity_measures_what_the_method_can_prune() -> None:
    model = Signals()
    before = copy.deepcopy(model.state_dict())
    config = PruningConfig(method="wanda", sparsity=0.5)
    rows = sensitivity(model, config, lambda _: 1.0, [0.5], Calibration(signal_batches()))
    assert [row.layer for row in rows] == ["first", "cube", *RECURRENT]
    every = sensitivity(model, PruningConfig(sparsity=0.5), lambda _: 1.0, [0.5])
    assert [row.layer for row in every] == ["text_projection", "first", "cube", "up", *RECURRENT]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_patterns_name_parameters_and_the_modules_that_hold_them() -> None:
    for targets, expected in (
        ("memory", RECURRENT[:2]),
        ("LSTM", RECURRENT[:2]),
        ("*.weight_hh*", ["memory.weight_hh_l0", "step.weight_hh"]),
        ("latents", ["latents"]),
    ):
        assert list(select_targets(Signals(), [targets])) == expected
    without = select_targets(Signals(), exclude=["GRUCell", "text_projection"])
    assert list(without) == ["first", "cube", "up", *RECURRENT[:2]]
    with pytest.raises(TargetError, match="pattern 'memry' matches no module"):
        select_targets(Signals(), ["memry"])
    config = PruningConfig(method="wanda", sparsity=0.5, targets=("up",))
    with pytest.raises(TargetError, match="nothing is left to prune: up"):
        prune(Signals(), config, Calibration(signal_batches()))


def test_the_share_that_stays_dense_by_default_is_noted_when_it_is_large() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 40))
    report = prune(model, PruningConfig(sparsity=0.5))
    assert any("1 stays dense, 91% of the weights" in note for note in report.notes)
    assert report.overall == pytest.approx(16 / 352)
    assert prune(model, PruningConfig(sparsity=0.5, targets=("Linear",))).notes == ()


@pytest.mark.parametrize("name", ["q_head", "k_head", "query_head", "multihead_attn"])
def test_projections_named_after_heads_are_targets(name: str) -> None:
    model = nn.Sequential(OrderedDict({name: nn.Linear(4, 4), "out": nn.Linear(4, 2)}))
    assert list(select_targets(model)) == [name]


class Relative(nn.Module):
    """Attention with matrices that are bare parameters, and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.Wk = nn.Parameter(torch.randn(8, 2, 4)), nn.Parameter(torch.randn(8, 8))
        self.r_w_bias, self.gains = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(8, 8))
        self.places = Places(5, 8)
        self.out = nn.Linear(8, 8)


class Places(nn.Embedding):
    """An embedding under a class of its own."""


def test_bare_projections_are_told_from_tables_and_other_parameters() -> None:
    model = Relative()
    report = prune(model, PruningConfig(sparsity=0.5))
    assert [layer.name for layer in report.layers] == ["q", "Wk"]
    assert set(report.untouched) == {"gains", "out"}


@pytest.mark.parametrize("name", ["head", "lm_head", "cls_head1", "video_head", "mlp_head"])
def test_heads_are_no_targets(name: str) -> None:
    model = nn.Sequential(
        OrderedDict({name: nn.Linear(4, 4), "body": nn.Linear(4, 4), "out": nn.Linear(4, 2)})
    )
    assert list(select_targets(model)) == ["body"]


def masked(layer: nn.Module) -> None:
    torch_prune.random_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]


def normalised(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)


def formerly_normalised(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


def spectral(layer: nn.Module) -> None:
    nn.utils.spectral_norm(layer)


COMPUTED: dict[Callable[[nn.Module], None], str] = {
    masked: r"torch\.nn\.utils\.prune\.remove\(model\.get_submodule\('1'\), 'weight'\)",
    normalised: r"parametrize\.remove_parametrizations\(model\.get_submodule\('1'\), 'weight'\)",
    formerly_normalised: r"remove_weight_norm\(model\.get_submodule\('1'\), 'weight'\)",
    spectral: r"remove_spectral_norm\(model\.get_submodule\('1'\), 'weight'\)",
}


@pytest.mark.parametrize("kind", COMPUTED, ids=lambda kind: str(kind.__name__))
def test_refuses_weights_that_are_computed_before_anything_changes(
    kind: Callable[[nn.Module], None],
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    kind(model[1])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=COMPUTED[kind]):
        prune(model, PruningConfig(sparsity=0.5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [
        layer.name for layer in prune(model, PruningConfig(sparsity=0.5, exclude=("1",))).layers
    ] == ["0"]


def test_refuses_a_masked_recurrent_matrix() -> None:
    model = Signals()
    mask: Callable[..., object] = torch_prune.random_unstructured
    mask(model.memory, "weight_hh_l0", 0.5)
    with pytest.raises(ModelError, match=r"remove\(model.*'memory'\), 'weight_hh_l0'"):
        prune(model, PruningConfig(sparsity=0.5))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "alps", "taylor", "obert", "random"])
@pytest.mark.parametrize("bias_repair", [True, False])
def test_an_error_midway_leaves_the_model_bit_for_bit(
    method: str, bias_repair: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Encoder().train()
    before = copy.deepcopy(model.state_dict())
    writes = 0

    def fail_at_the_fourth(module: nn.Module, matrix: Tensor) -> None:
        nonlocal writes
        writes += 1
        if writes == 4:
            raise RuntimeError("injected")
        write_matrix(module, matrix)

    for place in (oneshot, layer_solver):
        monkeypatch.setattr(place, "write_matrix", fail_at_the_fourth)
    config = PruningConfig.from_dict(
        {"method": method, "sparsity": 0.5, "bias_repair": bias_repair}
    )
    with pytest.raises(RuntimeError, match="injected"):
        prune(model, config, Calibration(encoder_batches()))
    assert writes == 4
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(module.training for module in model.modules())
    assert "forward" not in vars(model.cross)


def test_what_is_left_out_is_said_with_its_reason() -> None:
    report = prune(Signals(), PruningConfig(sparsity=0.5, exclude=("memory", "step")))
    assert report.untouched == {
        "latents": UNKNOWN, "out": "head", **dict.fromkeys(RECURRENT, "excluded"),
    }  # fmt: skip
    assert report.to_dict()["untouched"] == report.untouched
    assert report.to_dict()["overall"] == report.overall
    assert not any("memory" in note for note in report.notes)
    assert prune(Signals(), PruningConfig(sparsity=0.5, targets=("out",))).untouched == {}
