from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import CalibrationError, ConfigError, ModelError, TargetError
from hfcompress.pruning.training_config import PruningTrainingConfig
from hfcompress.pruning.training_masks import TrainingMasks

STEPS = 20


def small_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def weight_of(model: nn.Module, name: str = "0") -> nn.Parameter:
    return model.get_parameter(f"{name}.weight")


def train(
    model: nn.Module, config: PruningTrainingConfig, steps: int = STEPS, rate: float = 1e-2
) -> TrainingMasks:
    """A training loop as any user could write it."""
    masks = TrainingMasks(model, config, steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    masks.update(0)
    for step in range(1, steps + 1):
        inputs = torch.randn(16, 8, generator=generator)
        loss = F.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        masks.before_step()
        optimizer.step()
        masks.after_step()
        masks.update(step)
    return masks


def config(**fields: object) -> PruningTrainingConfig:
    base: dict[str, object] = {"sparsity": 0.5, "warmup": 0.1}
    if fields.get("schedule") != "one_shot":
        base["frequency"] = 1
    return PruningTrainingConfig.from_dict({**base, **fields})


@pytest.mark.parametrize("method", ["magnitude", "movement"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("schedule", ["cubic", "linear", "constant"])
def test_the_requested_sparsity_is_reached_exactly(method: str, scope: str, schedule: str) -> None:
    model = small_model()
    masks = train(model, config(method=method, scope=scope, schedule=schedule))
    assert list(masks.kept) == ["0", "2"]
    assert masks.sparsity == 0.5
    if scope == "layer":
        assert all(kept.float().mean() == 0.5 for kept in masks.kept.values())
    for name, kept in masks.kept.items():
        weight = model.get_parameter(f"{name}.weight")
        assert torch.equal(weight != 0, kept)


def test_one_shot_keeps_its_masks() -> None:
    model = small_model()
    masks = TrainingMasks(model, config(schedule="one_shot", warmup=0.0), STEPS)
    masks.update(0)
    first = {name: kept.clone() for name, kept in masks.kept.items()}
    assert not masks.update(10)
    assert all(torch.equal(kept, first[name]) for name, kept in masks.kept.items())
    assert masks.sparsity == 0.5


def test_magnitude_keeps_the_largest_weights() -> None:
    model = small_model()
    dense = weight_of(model).detach().clone()
    TrainingMasks(model, config(schedule="one_shot", warmup=0.0), STEPS).update(0)
    dropped = weight_of(model) == 0
    assert dense[dropped].abs().max() <= dense[~dropped].abs().min()


def test_dropped_magnitudes_never_come_back_and_movement_ones_do() -> None:
    def regrown(method: str) -> int:
        model = small_model()
        masks = TrainingMasks(model, config(method=method, schedule="constant", start=1), 200)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        generator, count = torch.Generator().manual_seed(1), 0
        for step in range(1, 100):
            inputs = torch.randn(16, 8, generator=generator)
            F.cross_entropy(model(inputs), (inputs[:, 0] > 0).long()).backward()  # type: ignore[no-untyped-call]
            masks.before_step()
            optimizer.step()
            optimizer.zero_grad()
            masks.after_step()
            before = masks.kept["0"].clone()
            masks.update(step)
            count += int((masks.kept["0"] & ~before).sum()) if step > 1 else 0
        return count

    assert regrown("magnitude") == 0
    assert regrown("movement") > 0


def test_a_weight_that_returns_has_the_value_it_had() -> None:
    model = small_model()
    masks = TrainingMasks(model, config(method="movement", schedule="constant", start=1), STEPS)
    dense = weight_of(model).detach().clone()
    for weight in masks.weights.values():
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    masks.before_step()
    masks.update(1)
    dropped = ~masks.kept["0"]
    masks.scores["0"].neg_()
    masks.update(2)
    returned = masks.kept["0"] & dropped
    assert returned.any()
    assert torch.equal(weight_of(model)[returned], dense[returned])


def test_movement_prefers_weights_that_move_away_from_zero() -> None:
    model = small_model()
    masks = TrainingMasks(model, config(method="movement", schedule="one_shot", start=1), STEPS)
    grows = torch.rand(16, 8, generator=torch.Generator().manual_seed(3)) > 0.5
    grows.view(-1)[:] = torch.randperm(128, generator=torch.Generator().manual_seed(3)) < 64
    sign = weight_of(model).detach().sign()
    weight_of(model).grad = torch.where(grows, -sign, sign)
    weight_of(model, "2").grad = torch.ones_like(weight_of(model, "2"))
    masks.before_step()
    masks.update(1)
    assert torch.equal(masks.kept["0"], grows)


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [("regularization", 0.5, 4.0), ("threshold", 0.05, 0.45), ("score_learning_rate", 0.01, 0.2)],
)
def test_soft_movement_gets_sparser_with_each_of_its_options(
    field: str, low: float, high: float
) -> None:
    def sparsity(value: float) -> float:
        fields = {"regularization": 2.0, "threshold": 0.3, "score_learning_rate": 0.05}
        soft = config(method="soft_movement", sparsity=None, **{**fields, field: value})
        return train(small_model(), soft, steps=40).sparsity

    assert sparsity(low) < sparsity(high)


def test_keep_zeros_holds_what_is_there() -> None:
    model = small_model()
    zero = torch.rand(16, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    weight_of(model).data[zero] = 0
    train(model, PruningTrainingConfig(method="keep_zeros"))
    assert torch.equal(weight_of(model) == 0, zero)
    assert not (weight_of(model, "2") == 0).any()


def test_keep_zeros_refuses_a_dense_model() -> None:
    with pytest.raises(TargetError, match="would prune nothing"):
        TrainingMasks(small_model(), PruningTrainingConfig(method="keep_zeros"), STEPS)


def groups_of_inputs(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    matrix = weight.t() if isinstance(layer, Conv1D) else weight.flatten(1)
    return (matrix != 0).reshape(len(matrix), -1, 4).sum(-1)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(16, 6),
    "conv1d": lambda: Conv1D(6, 16),  # type: ignore[no-untyped-call]
    "conv2d": lambda: nn.Conv2d(4, 6, 2),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("pattern", "kept"), [("2:4", 2), ("1:4", 1), ("3:4", 3)])
def test_n_of_m_holds_along_the_inputs(kind: str, pattern: str, kept: int) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    model = nn.Sequential(layer, nn.Linear(6, 2))
    fields = config(sparsity=None, pattern=pattern, schedule="one_shot", warmup=0.0)
    TrainingMasks(model, fields, STEPS).update(0)
    assert (groups_of_inputs(layer) == kept).all()


def test_a_layer_that_cannot_hold_the_pattern_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(TargetError, match="0 has 4 outputs and 3 inputs, too few for pattern"):
        TrainingMasks(model, config(sparsity=None, pattern="2:4"), STEPS)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_blocks_are_zero_as_a_whole(scope: str) -> None:
    model = small_model()
    masks = train(model, config(pattern="4x2", scope=scope))
    assert masks.sparsity == pytest.approx(0.5, abs=0.02)
    for name in ("0", "2"):
        weight = weight_of(model, name)
        blocks = (weight == 0).reshape(weight.shape[0] // 4, 4, weight.shape[1] // 2, 2)
        whole, some = blocks.all(3).all(1), blocks.any(3).any(1)
        assert torch.equal(whole, some)


def test_the_schedule_lowers_n_step_by_step() -> None:
    model = small_model()
    fields = config(sparsity=None, pattern="1:4", schedule="linear", start=0, end=3)
    masks = TrainingMasks(model, fields, STEPS)
    left = []
    for step in range(4):
        masks.update(step)
        left.append(int(groups_of_inputs(model[0]).max()))
    assert left == [4, 3, 2, 1]


def test_targets_and_exclude_choose_the_modules() -> None:
    assert list(TrainingMasks(small_model(), config(targets=["2"]), STEPS).kept) == ["2"]
    assert list(TrainingMasks(small_model(), config(exclude=["2"]), STEPS).kept) == ["0"]
    with pytest.raises(TargetError, match="matches no module"):
        TrainingMasks(small_model(), config(targets=["lin"]), STEPS)


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = small_model()
    weight_of(model, "2").data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"2\.weight"):
        TrainingMasks(model, config(), STEPS)


def test_movement_without_a_gradient_is_refused() -> None:
    masks = TrainingMasks(small_model(), config(method="movement", start=0, end=5), STEPS)
    masks.update(0)
    with pytest.raises(CalibrationError, match="before any gradient"):
        masks.update(1)


def test_a_step_that_the_loss_scaler_skips_leaves_the_scores() -> None:
    masks = TrainingMasks(small_model(), config(method="movement"), STEPS)
    weight = masks.weights["0"]
    weight.grad = torch.full_like(weight, float("inf"))
    masks.before_step()
    assert not masks.scores["0"].any()


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_state_round_trip_goes_on_as_if_nothing_had_happened(method: str) -> None:
    model = small_model()
    masks = train(model, config(method=method))
    copy = TrainingMasks(model, config(method=method), STEPS)
    copy.load(masks.state())
    assert {name: value.dtype for name, value in copy.state().items()} == {
        name: value.dtype for name, value in masks.state().items()
    }
    assert all(torch.equal(value, copy.state()[name]) for name, value in masks.state().items())


def test_a_state_of_another_model_is_refused() -> None:
    masks = train(small_model(), config())
    with pytest.raises(TargetError, match="is not zero where the saved masks"):
        TrainingMasks(small_model(1), config(), STEPS).load(masks.state())
    with pytest.raises(TargetError, match="other modules"):
        TrainingMasks(small_model(), config(targets=["0"]), STEPS).load(masks.state())


def test_a_schedule_that_ends_after_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="ends at step 21, after training does"):
        TrainingMasks(small_model(), config(end=21), STEPS)


def test_the_moments_of_dropped_weights_take_no_steps() -> None:
    model = small_model()
    masks = TrainingMasks(model, config(schedule="one_shot", warmup=0.0), STEPS)
    masks.update(0)
    optimizer = torch.optim.AdamW(model.parameters())
    F.cross_entropy(model(torch.ones(4, 8)), torch.zeros(4, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    masks.before_step()
    optimizer.step()
    masks.after_step()
    moments = optimizer.state[weight_of(model)]["exp_avg"]
    assert not moments[~masks.kept["0"]].any()
    assert moments[masks.kept["0"]].any()


def test_a_given_function_prunes_at_each_update_and_its_zeros_are_held() -> None:
    model, asked = small_model(), []

    def prune_columns(model: nn.Module, sparsity: float) -> None:
        asked.append((round(sparsity, 6), model.training))
        weight = weight_of(model).data
        weight[:, : round(sparsity * weight.shape[1])] = 0
        weight_of(model, "2").data.add_(1.0)  # as a method that repairs what is left

    fields = config(method="custom", schedule="linear", start=2, end=6, frequency=2, sparsity=0.5)
    masks = TrainingMasks(model, fields, STEPS, prune_columns)
    for step in range(STEPS):
        masks.update(step)
        weight_of(model).data.add_(1.0)  # as an optimizer step
        masks.after_step()
    assert asked == [(0.0, False), (0.25, False), (0.5, False)]
    assert model.training
    assert (weight_of(model)[:, :4] == 0).all()
    assert (weight_of(model)[:, 4:] != 0).all()
    assert masks.sparsity == pytest.approx(64 / 256)


def test_a_function_goes_with_method_custom_only() -> None:
    with pytest.raises(ConfigError, match="'custom' needs a function"):
        TrainingMasks(small_model(), config(method="custom"), STEPS)
    with pytest.raises(ConfigError, match="no other method takes one"):
        TrainingMasks(small_model(), config(), STEPS, lambda model, sparsity: None)
