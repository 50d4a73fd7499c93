import pytest

from hfcompress.errors import ConfigError
from hfcompress.pruning.training_config import (
    LotteryConfig,
    ProgressiveConfig,
    PruningTrainingConfig,
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs the field 'sparsity'"),
        ({"sparsity": 0}, "greater than 0"),
        ({"sparsity": 1}, "less than 1"),
        ({"sparsity": 0.5, "methud": "movement"}, "did you mean 'method'"),
        ({"sparsity": 0.5, "pattern": "2:4x"}, r"pattern.*N:M such as '2:4'"),
        ({"pattern": "4:4"}, "0 < N < M"),
        ({"pattern": "2:4", "scope": "global"}, "scope has no effect"),
        ({"pattern": "2:4", "sparsity": 0.6}, "has sparsity 0.5, not 0.6"),
        ({"method": "soft_movement", "sparsity": 0.5}, "follows from regularization"),
        ({"method": "keep_zeros", "sparsity": 0.5}, "follows from the model's zeros"),
        ({"method": "soft_movement", "pattern": "2:4"}, "pattern has no effect"),
        ({"method": "soft_movement", "scope": "global"}, "scope has no effect"),
        ({"method": "keep_zeros", "frequency": 3}, "frequency has no effect"),
        ({"sparsity": 0.5, "threshold": 0.2}, "threshold has no effect"),
        ({"sparsity": 0.5, "schedule": "one_shot", "end": 3}, "end has no effect"),
        (
            {"sparsity": 0.5, "schedule": "constant", "initial_sparsity": 0.1},
            "initial_sparsity has no effect",
        ),
        ({"sparsity": 0.5, "initial_sparsity": 0.6}, "exceeds the final sparsity"),
        ({"sparsity": 0.5, "warmup": 0.6, "cooldown": 0.5}, "together must not exceed 1"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruningTrainingConfig.from_dict(fields)


def test_the_plain_config_is_read_back() -> None:
    for fields in ({"method": "keep_zeros"}, {"pattern": "2:4"}, {"sparsity": 0.5, "end": 7}):
        config = PruningTrainingConfig.from_dict(fields)
        assert PruningTrainingConfig.from_dict(config.to_dict()) == config


def test_warmup_and_cooldown_are_shares_and_steps_go_before_them() -> None:
    config = PruningTrainingConfig(sparsity=0.5, warmup=0.2, cooldown=0.3)
    schedule = config.sparsity_schedule(1000)
    assert (schedule.start, schedule.end) == (200, 700)
    schedule = config.replace(start=10, end=20).sparsity_schedule(1000)
    assert (schedule.start, schedule.end) == (10, 20)


def test_each_field_of_the_schedule_reaches_it() -> None:
    config = PruningTrainingConfig(
        sparsity=0.5, schedule="linear", initial_sparsity=0.2, frequency=7
    )
    schedule = config.sparsity_schedule(100)
    assert (schedule.kind, schedule.final) == ("linear", 0.5)
    assert (schedule.initial, schedule.frequency) == (0.2, 7)


def test_lottery_drops_the_same_share_of_the_rest_each_round() -> None:
    shares = LotteryConfig(sparsity=0.875, rounds=3).sparsities()
    assert shares == pytest.approx((0.5, 0.75, 0.875))
    assert shares[-1] == 0.875


def test_progressive_spacing() -> None:
    linear = ProgressiveConfig(sparsity=0.9, initial_sparsity=0.5, rounds=3, spacing="linear")
    assert linear.sparsities() == pytest.approx((0.5, 0.7, 0.9))
    cubic = linear.replace(spacing="cubic")
    assert cubic.sparsities() == pytest.approx((0.5, 0.85, 0.9))
    assert linear.replace(rounds=1).sparsities() == (0.9,)
    with pytest.raises(ConfigError, match="exceeds sparsity"):
        ProgressiveConfig(sparsity=0.5, initial_sparsity=0.6)
