import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfcompress.errors import ConfigError
from hfcompress.pruning.schedule import SparsitySchedule

KINDS = ("cubic", "linear", "constant", "one_shot")


@st.composite
def schedules(draw: st.DrawFn) -> SparsitySchedule:
    final = draw(st.floats(0.01, 1.0))
    start = draw(st.integers(0, 50))
    return SparsitySchedule(
        kind=draw(st.sampled_from(KINDS)),
        final=final,
        initial=draw(st.floats(0.0, 1.0)) * final,
        start=start,
        end=start + draw(st.integers(0, 100)),
        frequency=draw(st.integers(1, 20)),
    )


@given(schedules())
def test_sparsity_never_falls_and_ends_at_the_final_one(schedule: SparsitySchedule) -> None:
    values = [schedule.sparsity(step) for step in range(schedule.end + 5)]
    assert values == sorted(values)
    assert values[schedule.end] == schedule.final
    assert all(value == 0 for value in values[: schedule.start])


@given(schedules())
def test_sparsity_changes_only_at_updates(schedule: SparsitySchedule) -> None:
    for step in range(1, schedule.end + 5):
        if schedule.sparsity(step) != schedule.sparsity(step - 1):
            assert schedule.is_update(step)


@given(schedules())
def test_the_last_update_is_one_and_none_follows(schedule: SparsitySchedule) -> None:
    assert schedule.is_update(schedule.last_update)
    assert not any(schedule.is_update(schedule.last_update + later) for later in range(1, 50))
    assert not any(schedule.is_update(step) for step in range(schedule.start))


def test_cubic_is_the_formula_of_zhu_and_gupta() -> None:
    schedule = SparsitySchedule("cubic", final=0.9, initial=0.1, start=10, end=110, frequency=5)
    for step in range(10, 111, 5):
        expected = 0.9 + (0.1 - 0.9) * (1 - (step - 10) / 100) ** 3
        assert schedule.sparsity(step) == pytest.approx(expected)
        assert schedule.is_update(step)


def test_linear_is_halfway_in_the_middle() -> None:
    schedule = SparsitySchedule("linear", final=0.8, initial=0.2, start=0, end=10)
    assert schedule.sparsity(5) == pytest.approx(0.5)


def test_constant_updates_again_and_one_shot_does_not() -> None:
    constant = SparsitySchedule("constant", final=0.8, start=2, end=10, frequency=4)
    one_shot = SparsitySchedule("one_shot", final=0.8, start=2, end=10, frequency=4)
    assert [step for step in range(20) if constant.is_update(step)] == [2, 6, 10]
    assert [step for step in range(20) if one_shot.is_update(step)] == [2]
    assert constant.sparsity(2) == one_shot.sparsity(2) == 0.8


def test_the_end_is_an_update_between_two_regular_ones() -> None:
    schedule = SparsitySchedule("linear", final=0.8, start=0, end=10, frequency=4)
    assert [step for step in range(20) if schedule.is_update(step)] == [0, 4, 8, 10]
    assert schedule.sparsity(9) == pytest.approx(0.64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "quadratic"}, "schedule must be one of"),
        ({"final": 0.0}, "final sparsity"),
        ({"final": 1.1}, "final sparsity"),
        ({"initial": 0.9}, "initial sparsity"),
        ({"initial": -0.1}, "initial sparsity"),
        ({"start": 11}, "no earlier than it starts"),
        ({"start": -1}, "start at step 0"),
        ({"frequency": 0}, "frequency"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"kind": "cubic", "final": 0.8, "start": 0, "end": 10, **changes}
    with pytest.raises(ConfigError, match=message):
        SparsitySchedule(**values)  # type: ignore[arg-type]
